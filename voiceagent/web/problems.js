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
  const because = reason ? `: ${sentence(reason)}` : ".";
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
 * Why a connection could not be opened, from the server's readiness (see readiness.js): the browser hides the answer to a
 * failed handshake.
 */
export function handshakeProblem({ reachable, status, body }, hadKey) {
  if (!reachable) return { kind: "gone", text: "The server does not answer. Is it running?" };
  if (status === 503) return { kind: "busy", text: sentence(body.reason ?? body.error?.message, "The server takes no other conversation now") };
  if (body.key_required || status === 401) {
    return { kind: "key", text: hadKey ? "The server did not accept the API key." : "This server asks for an API key." };
  }
  if (status !== 200) return { kind: "server", text: `The server has a problem (HTTP ${status}).` };
  return { kind: "refused", text: `The server refused this page. If it is not at ${location.host} that you started it, name this address in its allowed_origins.` };
}

function sentence(text, otherwise) {
  const chosen = typeof text === "string" && text !== "" ? text.slice(0, 300) : otherwise;
  return /[.!?]$/.test(chosen) ? chosen : `${chosen}.`;
}

/** The server's `error` event. */
export function serverProblem(error) {
  if (error?.code === "invalid_api_key") return { kind: "key", text: error.message ?? "The API key is not valid." };
  return { kind: "server", text: error?.message ?? "The server reported an error without saying which." };
}
