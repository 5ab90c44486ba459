"use strict";
// The list of all queries. Its data files are scripts that call amexQueries and amexTop, because a page opened from disk
// can load no other data. Texts are inserted as text nodes, never as markup.
const element = (id) => document.getElementById(id);
const PAGE = 25;
const chunks = new Map();
let data, chosen = [], shown = 0;

function amexTop(top) {
  chunks.get(top.number).resolve(top);
}

function loadTop(number) {
  if (!chunks.has(number)) {
    const chunk = {};
    chunk.promise = new Promise((resolve, reject) => { Object.assign(chunk, { resolve, reject }); });
    chunks.set(number, chunk);
    const script = document.createElement("script");
    script.src = `data/top-${number}.js`;
    script.onerror = () => { chunks.delete(number); chunk.reject(new Error(`cannot load ${script.src}`)); };
    document.head.append(script);
  }
  return chunks.get(number).promise;
}

function amexQueries(loaded) {
  data = loaded;
  data.pictures = new Set(data.pictures);
  data.clipCaption = [];
  data.has = data.clips.map(() => new Set());
  data.own.forEach((clip, query) => {
    data.clipCaption[clip] ??= data.captions[data.caption[query]];
    data.has[clip].add(data.caption[query]);
  });
  data.lower = data.captions.map((caption) => caption.toLowerCase());
  for (const id of ["which", "order"]) element(id).addEventListener("change", choose);
  element("words").addEventListener("input", choose);
  element("ask").addEventListener("submit", (event) => event.preventDefault());
  element("before").addEventListener("click", () => turn(-1));
  element("after").addEventListener("click", () => turn(1));
  choose();
}

const other = (query) => data.other?.[query] ?? null;
// Positions are compared by their ratio: from 1 to 10 is as far as from 10 to 100.
const gain = (query) => (other(query) === null ? 0 : Math.log(other(query) / data.position[query]));

const WHICH = {
  all: () => true,
  first: (query) => data.position[query] === 1,
  ten: (query) => data.position[query] > 1 && data.position[query] <= 10,
  later: (query) => data.position[query] > 10,
  weak: (query) => data.weak[query] === 1,
  gained: (query) => gain(query) > 0,
  lost: (query) => gain(query) < 0,
};
const ORDER = {
  file: () => 0,
  best: (a, b) => data.position[a] - data.position[b],
  worst: (a, b) => data.position[b] - data.position[a],
  gain: (a, b) => gain(b) - gain(a),
  loss: (a, b) => gain(a) - gain(b),
};

function choose() {
  const words = element("words").value.toLowerCase().split(/\s+/).filter(Boolean);
  const has = (query) => words.every((word) =>
    data.lower[data.caption[query]].includes(word) || data.clips[data.own[query]].toLowerCase().includes(word));
  const which = WHICH[element("which").value];
  chosen = [...data.own.keys()].filter((query) => which(query) && has(query)).sort(ORDER[element("order").value]);
  shown = 0;
  element("count").textContent = `${chosen.length.toLocaleString("en")} of ${data.own.length.toLocaleString("en")} queries`;
  draw();
}

function turn(pages) {
  shown += pages * PAGE;
  draw();
  element("browse").scrollIntoView();
}

function draw() {
  element("queries").replaceChildren(...chosen.slice(shown, shown + PAGE).map(row));
  document.querySelector(".pager").hidden = chosen.length <= PAGE;
  element("page").textContent = `${shown + 1} to ${Math.min(shown + PAGE, chosen.length)} of ${chosen.length.toLocaleString("en")}`;
  element("before").disabled = shown === 0;
  element("after").disabled = shown + PAGE >= chosen.length;
}

function make(tag, name, ...inside) {
  const node = document.createElement(tag);
  if (name) node.className = name;
  node.append(...inside);
  return node;
}

const number = (value) => value.toLocaleString("en", { maximumFractionDigits: 1 });

function row(query) {
  const at = make("span", "at", make("b", data.position[query] === 1 ? "right" : "", number(data.position[query])));
  if (data.other) at.append(make("small", gain(query) > 0 ? "right" : gain(query) < 0 ? "wrong" : "",
    other(query) === null ? "not in the other run" : `other: ${number(other(query))}`));
  const first = data.first[query], own = data.own[query];
  const under = make("span", "under", data.clips[own], first === own ? ", first hit" : `; first hit ${data.clips[first]}`);
  if (data.weak[query]) under.append(" ", make("span", "weak", "weak"));
  const button = make("button", "query", at, make("span", "said", data.captions[data.caption[query]]), under);
  button.type = "button";
  button.setAttribute("aria-expanded", "false");
  const item = make("li", "", button);
  button.addEventListener("click", () => open(item, button, query));
  return item;
}

async function open(item, button, query) {
  const opened = button.getAttribute("aria-expanded") === "true";
  button.setAttribute("aria-expanded", String(!opened));
  if (opened) { item.lastChild.remove(); return; }
  const place = item.appendChild(make("div", "top"));
  try {
    const top = await loadTop(Math.floor(query / data.chunk)), at = query % data.chunk;
    const hits = top.clips[at].map((clip, i) => hit(query, clip, `${i + 1}.`, top.scores[at][i], top.weak[at][i]));
    if (!top.clips[at].includes(data.own[query])) {
      hits.push(hit(query, data.own[query], `${number(data.position[query])}.`, data.score[query], 0));
    }
    place.replaceChildren(...hits);
  } catch (error) {
    place.textContent = `${error.message}: keep all files of the page together.`;
  }
}

function hit(query, clip, rank, score, weak) {
  let picture = make("div", "none", "no picture");
  if (data.pictures.has(clip)) {
    picture = make("img");
    picture.src = `pictures/${clip}.jpg`;
    picture.alt = "";
    picture.loading = "lazy";
  }
  const own = clip === data.own[query];
  const says = make("figcaption", "", `${rank} `, make("b", "", score.toFixed(3)));
  if (weak) says.append(" ", make("span", "weak", "weak"));
  if (own) says.append(" ", make("span", "right", "right clip"));
  else if (data.has[clip].has(data.caption[query])) says.append(" ", make("span", "right", "same caption"));
  says.append(make("br"), data.clips[clip]);
  if (data.clipCaption[clip] !== undefined) says.append(`: ${data.clipCaption[clip]}`);
  return make("figure", own ? "own" : "", picture, says);
}
