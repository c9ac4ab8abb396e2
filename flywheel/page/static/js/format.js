/* Numbers, times and ids as a person reads them. */
const whole = new Intl.NumberFormat("en", { maximumFractionDigits: 0 });

const signed = (text) => text.replaceAll("-", "−");

export const count = (value) => (value === null || value === undefined ? "–" : signed(whole.format(value)));

export function number(value, digits = 4) {
  if (value === null || value === undefined) return "–";
  const size = Math.abs(value);
  if (value === 0) return "0";
  if (size >= 10000 || Number.isInteger(value)) return count(value);
  if (size < 0.001) return signed(Number(value.toPrecision(digits)).toExponential());
  return signed(value.toLocaleString("en", { maximumSignificantDigits: digits }));
}

/* One number of digits for a whole column, so that its points stand under each other. */
export function fixed(value, places) {
  if (value === null || value === undefined) return "–";
  const text = value.toFixed(places);
  return Number(text) === 0 ? text.replace("-", "") : signed(text);
}

export const percent = (share, places = 1) =>
  share === null || share === undefined ? "–" : `${fixed(100 * share, places)} %`;

export const short = (digest) => (digest || "").slice(0, 8);

export const shortId = (id) => (id.length <= 18 ? id : `${id.slice(0, 8)}…${id.slice(-6)}`);

export function seconds(value) {
  if (value === null || value === undefined) return "–";
  if (value < 10) return `${value.toFixed(1)} s`;
  if (value < 100) return `${Math.round(value)} s`;
  if (value < 5400) return `${Math.floor(value / 60)} min ${Math.round(value % 60)} s`;
  if (value < 172800) return `${Math.floor(value / 3600)} h ${Math.round((value % 3600) / 60)} min`;
  return `${(value / 86400).toFixed(1)} days`;
}

const date = (at) => new Date(at * 1000);
const pad = (value) => String(value).padStart(2, "0");

export function clock(at) {
  const d = date(at);
  return `${pad(d.getHours())}:${pad(d.getMinutes())}:${pad(d.getSeconds())}`;
}

export function day(at) {
  const d = date(at);
  const months = ["Jan", "Feb", "Mar", "Apr", "May", "Jun", "Jul", "Aug", "Sep", "Oct", "Nov", "Dec"];
  return `${d.getDate()} ${months[d.getMonth()]}`;
}

export const isToday = (at) => new Date().toDateString() === date(at).toDateString();

export function moment(at) {
  return isToday(at) ? clock(at) : `${day(at)} ${clock(at)}`;
}

export const utc = (at) => `${date(at).toISOString().replace("T", " ").slice(0, 19)} UTC`;

export function ago(at, now = Date.now() / 1000) {
  const gone = now - at;
  if (gone < 5) return "just now";
  if (gone < 90) return `${Math.round(gone)} s ago`;
  if (gone < 5400) return `${Math.round(gone / 60)} min ago`;
  if (gone < 129600) return `${Math.round(gone / 3600)} h ago`;
  return `${Math.round(gone / 86400)} days ago`;
}

export const words = (name) => name.replaceAll("_", " ");

export const plural = (value, one, many = `${one}s`) => `${count(value)} ${value === 1 ? one : many}`;

/* The step that an address asks for: the nearest of those there are. */
export const stepOf = (query, last) => Math.max(0, Math.min(last, Math.round(Number(query.get("t"))) || 0));

/* A word for a shell, in quotes where it needs them. */
export const shell = (word) => (/^[\w@%+=:,./-]+$/.test(word) ? word : `'${word.replaceAll("'", "'\\''")}'`);

export const python = (word) => JSON.stringify(word);
