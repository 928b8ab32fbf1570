/** The conversation as files. Pure: a model in, text out. */

/** A readable transcript. Words that the caller did not hear, because they were interrupted, are marked. */
export function transcriptText(model, when) {
  const lines = [`voiceagent transcript, ${when.toISOString()}`, ""];
  for (const entry of model.entries) {
    if (entry.role === "note") {
      lines.push(`-- ${entry.text} --`);
      continue;
    }
    const speaker = entry.role === "user" ? "You" : "Agent";
    const text = (entry.heardText ?? entry.text).trim() || "(nothing understood)";
    lines.push(`${speaker}: ${text}${entry.heardMs === null ? "" : " [interrupted]"}`);
  }
  return `${lines.join("\n")}\n`;
}

/** Everything that was measured, one record a response, with every denoising step. */
export function timelinesJson(model, when) {
  return JSON.stringify(
    {
      saved_at: when.toISOString(),
      session: model.session === null ? null : { id: model.session.id, model: model.session.model },
      conversation: model.entries.map(({ role, text, heardText, heardMs, spoken }) => ({
        role,
        text,
        heard_text: heardText,
        heard_ms: heardMs,
        spoken,
      })),
      responses: [...model.responses.values()].map((response) => ({
        id: response.id,
        started_by: response.startedBy,
        status: response.status,
        reason: response.reason,
        speech_end_to_first_audible_sample_in_page_ms: response.pageMs,
        plan: response.plan,
        plan_reason: response.planReason,
        steps: response.steps,
        timeline: response.timeline,
      })),
    },
    null,
    2,
  );
}
