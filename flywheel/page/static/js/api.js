/* What the server is asked. Every failure is an Error whose message is the server's own sentence. */
export class Failed extends Error {
  constructor(status, sentence) {
    super(sentence);
    this.status = status;
  }
}

export const address = (path, asked = {}) => {
  const url = new URL(`api/v1/${path}`, document.baseURI.split("#")[0]);
  for (const [name, value] of Object.entries(asked)) {
    if (value !== undefined && value !== null && value !== "") url.searchParams.set(name, value);
  }
  return url;
};

async function send(path, options, asked) {
  let response;
  try {
    response = await fetch(address(path, asked), { credentials: "same-origin", ...options });
  } catch (error) {
    if (error.name === "AbortError") throw error;
    throw new Failed(0, "The page's server does not answer: has `flywheel page` ended?");
  }
  if (response.ok) return response;
  let sentence = `The server answered ${response.status}.`;
  try { sentence = (await response.json()).error || sentence; } catch { /* no JSON: a proxy's own page */ }
  throw new Failed(response.status, sentence);
}

export const get = async (path, asked, signal) => (await send(path, { signal }, asked)).json();

export const picture = async (path, asked, signal) => {
  const response = await send(path, { signal }, asked);
  const image = await createImageBitmap(await response.blob());
  return { image, row: Number(response.headers.get("x-flywheel-row")), sheet: Number(response.headers.get("x-flywheel-sheet")) };
};

const bodied = (method) => async (path, body = {}, signal) =>
  (await send(path, { method, signal, headers: { "content-type": "application/json" }, body: JSON.stringify(body) })).json();

export const post = bodied("POST");
export const remove = bodied("DELETE");
