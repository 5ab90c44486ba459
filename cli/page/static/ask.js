// Returns the JSON answer of the server; throws its error message.
export async function ask(what, parameters, signal) {
  const answer = await fetch(`/api/${what}?${new URLSearchParams(parameters)}`, { signal });
  const body = await answer.json().catch(() => ({ error: `the server answered with status ${answer.status}` }));
  if (!answer.ok) throw new Error(body.error);
  return body;
}
