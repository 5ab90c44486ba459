// The page. Its address holds the search, the server answers in JSON, and texts are shown as text nodes, never as markup.
import { ask } from "/static/ask.js";
import { Player } from "/static/player.js";

const K = 20;
const MOST = 500;
const $ = (id) => document.getElementById(id);
const players = new Map(); // article -> Player
let about = { streams: [], splits: [], captions: false, no_pictures: "" };
let asking = new AbortController();

function state() {
  const asked = new URLSearchParams(location.search);
  const k = Number.parseInt(asked.get("k"), 10);
  const score = Number.parseFloat(asked.get("score"));
  return {
    q: asked.get("q") ?? "",
    k: Number.isFinite(k) ? Math.min(Math.max(k, 1), MOST) : K,
    split: asked.get("split") ?? "",
    stream: asked.get("stream") ?? "",
    score: Number.isFinite(score) ? score : null,
  };
}

// Returns the address of a search, without default values.
function addressOf(asked) {
  const parameters = new URLSearchParams();
  for (const [name, value] of Object.entries(asked)) {
    if (value !== "" && value !== null && !(name === "k" && value === K)) parameters.set(name, value);
  }
  const text = parameters.toString();
  return text ? `/?${text}` : "/";
}

function go(change) {
  const target = addressOf({ ...state(), ...change });
  if (target !== location.pathname + location.search) history.pushState(null, "", target);
  return show();
}

async function show(first = 0) {
  asking.abort();
  asking = new AbortController();
  const { signal } = asking;
  const asked = state();
  $("query").value = asked.q;
  $("split").value = asked.split;
  $("stream").value = asked.stream;
  document.title = asked.q ? `${asked.q} - amex` : "amex";
  $("status").textContent = asked.q ? "searching" : "";
  $("error").hidden = true;
  $("results").setAttribute("aria-busy", "true");
  let found = { hits: [], more: false };
  let failure = "";
  try {
    found = await ask("clips", { q: asked.q, k: asked.k, split: asked.split, stream: asked.stream }, signal);
  } catch (error) {
    if (signal.aborted) return; // another search took its place
    failure = error.message;
  }
  for (const player of players.values()) player.close();
  players.clear();
  $("results").replaceChildren(...found.hits.map(card));
  $("results").removeAttribute("aria-busy");
  $("error").textContent = failure;
  $("error").hidden = !failure;
  $("more").hidden = !found.more || asked.k >= MOST;
  setSlider(found.hits, asked.score);
  filter();
  if (first) articles()[first]?.focus();
}

function setSlider(hits, chosen) {
  const scores = hits.map((hit) => hit.score).filter(Number.isFinite);
  $("score-filter").hidden = !scores.length;
  if (!scores.length) return;
  const [low, high] = [Math.min(...scores), Math.max(...scores)];
  const slider = $("score");
  slider.min = low;
  slider.max = high;
  slider.step = (high - low) / 200 || 1;
  slider.value = chosen ?? low;
  $("least").textContent = Number(slider.value).toFixed(3);
}

// Hides clips below the chosen score, and shows how many are left.
function filter() {
  const { q, score } = state();
  let left = 0;
  const all = [...$("results").children];
  for (const item of all) {
    const value = Number(item.dataset.score);
    item.hidden = score !== null && item.dataset.score !== "" && value < score;
    if (item.hidden) players.get(item.querySelector("article"))?.pause();
    else left += 1;
  }
  if (!$("error").hidden) $("status").textContent = "";
  else if (!all.length) $("status").textContent = "no clips";
  else if (!q) $("status").textContent = `the first ${count(left)}`;
  else $("status").textContent = left < all.length ? `${left} of ${count(all.length)}` : `${count(left)}, the best first`;
}

const count = (clips) => `${clips} clip${clips === 1 ? "" : "s"}`;

function card(hit) {
  const item = $("card").content.firstElementChild.cloneNode(true);
  const article = item.querySelector("article");
  const part = (name) => article.querySelector(`.${name}`);
  item.dataset.score = hit.score ?? "";
  article.dataset.clip = hit.clip;
  article.setAttribute("aria-label", hit.rank ? `${hit.rank}: ${hit.caption || hit.clip}` : hit.caption || hit.clip);
  part("caption").textContent = hit.caption;
  part("clip").textContent = hit.clip;
  part("streams").textContent = hit.streams.join(", ");
  part("facts").append(...facts(hit));
  const player = new Player(article, hit, about.no_pictures, (own) => {
    for (const player of players.values()) if (player !== own) player.pause();
  });
  players.set(article, player);
  for (const name of hit.boxes) part("actions").append(button(hit.boxes.length > 1 ? `boxes: ${name}` : "boxes", "boxes", (pressed) => player.toggleBoxes(name, pressed)));
  if (about.captions) part("actions").append(button("captions that fit", "captions", (pressed) => fitting(article, hit, pressed)));
  return item;
}

function facts(hit) {
  const pieces = [];
  if (hit.rank) pieces.push(bold(`${hit.rank}`), ` score `, bold(hit.score === null ? "none" : hit.score.toFixed(3)));
  if (hit.weak) pieces.push(" (weak match)");
  const seconds = hit.start === null && hit.end === null ? "" : `${clock(hit.start ?? 0)} to ${hit.end === null ? "end" : clock(hit.end)}`;
  for (const text of [seconds, hit.split]) if (text) pieces.push(pieces.length ? ` · ${text}` : text);
  return pieces;
}

function bold(text) {
  const element = document.createElement("b");
  element.textContent = text;
  return element;
}

const clock = (seconds) => (seconds < 60 ? `${seconds.toFixed(1)} s` : `${Math.floor(seconds / 60)}:${(seconds % 60).toFixed(1).padStart(4, "0")}`);

function button(text, action, toggled) {
  const element = document.createElement("button");
  element.type = "button";
  element.textContent = text;
  element.dataset.action = action;
  element.setAttribute("aria-pressed", "false");
  element.addEventListener("click", () => {
    const pressed = element.getAttribute("aria-pressed") !== "true";
    for (const other of element.parentNode.querySelectorAll(`[data-action=${action}]`)) other.setAttribute("aria-pressed", "false");
    element.setAttribute("aria-pressed", String(pressed));
    toggled(pressed);
  });
  return element;
}

// Lists the captions that fit a clip. Each is a link that searches for it.
async function fitting(article, hit, pressed) {
  const list = article.querySelector(".fitting");
  list.hidden = !pressed;
  if (!pressed || list.children.length) return;
  try {
    const { captions } = await ask("captions", { clip: hit.clip });
    list.replaceChildren(...captions.map(({ caption, score }) => {
      const [item, link] = [document.createElement("li"), document.createElement("a")];
      link.href = addressOf({ ...state(), q: caption, k: K, score: null });
      link.textContent = caption;
      item.append(link, score === null ? "" : ` ${score.toFixed(3)}`);
      return item;
    }));
  } catch (error) {
    players.get(article)?.say(error.message, true);
  }
}

const articles = () => [...$("results").querySelectorAll("li:not([hidden]) > article")];

function move(step) {
  const all = articles();
  const at = all.indexOf(document.activeElement?.closest("article"));
  all[at < 0 ? (step > 0 ? 0 : all.length - 1) : Math.min(Math.max(at + step, 0), all.length - 1)]?.focus();
}

function onKey(event) {
  if (event.ctrlKey || event.metaKey || event.altKey || $("keys").open) return;
  const target = event.target;
  if (target.closest("input, select, textarea")) {
    if (event.key === "Escape" && target === $("query")) target.blur();
    return;
  }
  const article = document.activeElement?.closest("article");
  const press = (action) => article?.querySelector(`[data-action=${action}]`)?.click();
  const keys = {
    "/": () => $("query").select(),
    "?": () => $("keys").showModal(),
    j: () => move(1),
    ArrowDown: () => move(1),
    ArrowRight: () => move(1),
    k: () => move(-1),
    ArrowUp: () => move(-1),
    ArrowLeft: () => move(-1),
    b: () => press("boxes"),
    c: () => press("captions"),
  };
  if (target === article) keys.Enter = keys[" "] = () => players.get(article).toggle();
  if (target.closest("video") || (event.key.startsWith("Arrow") && !article)) return; // the player's own keys; scrolling
  if (keys[event.key]) {
    event.preventDefault();
    keys[event.key]();
  }
}

$("form").addEventListener("submit", (event) => {
  event.preventDefault();
  go({ q: $("query").value.trim(), k: K, score: null });
});
for (const name of ["split", "stream"]) $(name).addEventListener("change", () => go({ [name]: $(name).value, score: null }));
$("score").addEventListener("input", () => {
  const low = Number($("score").value) <= Number($("score").min);
  $("least").textContent = Number($("score").value).toFixed(3);
  history.replaceState(null, "", addressOf({ ...state(), score: low ? null : Number($("score").value) }));
  filter();
});
$("more").addEventListener("click", () => {
  const { k } = state();
  history.replaceState(null, "", addressOf({ ...state(), k: Math.min(k + K, MOST) }));
  show(k);
});
$("help").addEventListener("click", () => $("keys").showModal());
document.addEventListener("click", (event) => {
  const link = event.target.closest?.(".fitting a");
  if (!link || event.button || event.ctrlKey || event.metaKey || event.shiftKey) return;
  event.preventDefault();
  history.pushState(null, "", link.href);
  show();
  scrollTo(0, 0);
});
document.addEventListener("keydown", onKey);
addEventListener("popstate", () => show());

try {
  about = await ask("about", {});
  $("about").textContent = [about.description, about.clips, about.no_pictures].filter(Boolean).join(" · ");
  for (const name of ["split", "stream"]) for (const value of about[`${name}s`]) $(name).append(new Option(value, value));
  $("split-filter").hidden = !about.splits.length;
} catch (error) {
  $("about").textContent = error.message;
}
show();
