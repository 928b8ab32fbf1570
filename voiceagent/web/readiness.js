/** The server's own answer to "would a caller be let in, and by whom served?" */

/**
 * Returns {reachable, status, body}: body is the parsed JSON of `readyz` ({ready, reason, agent, parts, key_required, ...}),
 * or {} where the answer is not JSON. Never raises.
 */
export async function askReadiness() {
  let answer;
  try {
    answer = await fetch(new URL("readyz", document.baseURI), { cache: "no-store" });
  } catch {
    return { reachable: false, status: 0, body: {} };
  }
  try {
    return { reachable: true, status: answer.status, body: (await answer.json()) ?? {} };
  } catch {
    return { reachable: true, status: answer.status, body: {} };
  }
}
