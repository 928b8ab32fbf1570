/**
 * What went wrong, in words a caller can act on.
 *
 * A Problem is {kind, text}. Kinds: "key" (ask for an API key), "busy", "gone", "refused", "closed", "microphone", "server".
 */

/** Why getUserMedia failed. */
export function microphoneProblem(error) {
  const text = {
    NotAllowedError: "The browser was not allowed to use the microphone. Allow it in the address bar, then press Talk again. Typing works meanwhile.",
    NotFoundError: "No microphone was found. Plug one in and press Talk again. Typing works meanwhile.",
    NotReadableError: "The microphone is there but another program keeps it. Close that program and press Talk again. Typing works meanwhile.",
    OverconstrainedError: "The microphone cannot record what is needed. Choose another one in the browser's settings. Typing works meanwhile.",
    TypeError: "Browsers give the microphone only to secure pages. Open this page over https, or on this computer as http://localhost. Typing works meanwhile.",
  }[error.name];
  return { kind: "microphone", text: text ?? `The microphone could not be started (${error.name}: ${error.message}). Typing works meanwhile.` };
}

/** Why an open connection was closed by the other side. */
export function closeProblem(code, reason) {
  const because = reason ? `: ${reason}` : ".";
  if (code === 1008) {
    const isKey = /key|auth/i.test(reason);
    return { kind: isKey ? "key" : "refused", text: `The server refused the connection${because}` };
  }
  if (code === 1013) return { kind: "busy", text: `The server is full${because}` };
  if (code === 1001 || code === 1012) return { kind: "gone", text: `The server is shutting down or restarting${because}` };
  if (code === 1000) return { kind: "closed", text: `The server ended the conversation${because}` };
  if (code === 1006) return { kind: "gone", text: "The connection to the server was lost." };
  return { kind: "server", text: `The server closed the connection (code ${code})${because}` };
}

/**
 * Why a connection could not be opened. The browser hides the answer to a failed handshake, so the server's own
 * readiness page is asked.
 */
export async function probeProblem(hadKey) {
  let answer;
  try {
    answer = await fetch(new URL("readyz", document.baseURI), { cache: "no-store" });
  } catch {
    return { kind: "gone", text: "The server does not answer. Is it running?" };
  }
  if (answer.status === 503) return { kind: "busy", text: `The server is not ready for another conversation. ${await explanation(answer)}`.trim() };
  if (answer.status === 401 || answer.status === 403) return keyProblem(hadKey);
  if (!answer.ok) return { kind: "server", text: `The server has a problem (HTTP ${answer.status}). ${await explanation(answer)}`.trim() };
  return keyProblem(hadKey);
}

function keyProblem(hadKey) {
  return {
    kind: "key",
    text: hadKey ? "The server refused the connection. The API key may be wrong." : "The server refused the connection. It may need an API key.",
  };
}

async function explanation(answer) {
  const body = await answer.text();
  try {
    const parsed = JSON.parse(body);
    const text = parsed.error?.message ?? parsed.reason ?? parsed.detail ?? "";
    return typeof text === "string" ? text.slice(0, 300) : "";
  } catch {
    return body.startsWith("<") ? "" : body.slice(0, 300);
  }
}

/** The server's `error` event. */
export function serverProblem(error) {
  if (error?.code === "invalid_api_key") return { kind: "key", text: error.message ?? "The API key is not valid." };
  return { kind: "server", text: error?.message ?? "The server reported an error without saying which." };
}
