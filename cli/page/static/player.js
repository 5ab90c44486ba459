// The player of one clip: a thumbnail, then the video from the clip's start to its end, with boxes over the current frame.
import { ask } from "/static/ask.js";

const COLOURS = ["#ff6b81", "#5dd87a", "#7fa0ff", "#ffa15e", "#d57fe8", "#4ecdc4", "#d9a066", "#f58fe0"];
const SVG = "http://www.w3.org/2000/svg";
// Seconds: less than the time of a frame.
const TINY = 0.001;

export class Player {
  constructor(article, hit, noPictures, started) {
    this.article = article;
    this.hit = hit;
    this.started = started;
    this.stage = article.querySelector(".stage");
    this.note = article.querySelector(".note");
    this.video = null;
    this.offset = 0; // seconds between the player's clock and the video's: a copy begins at 0
    this.over = false; // the clip's end is reached
    this.frames = [];
    this.boxes = document.createElementNS(SVG, "svg");
    this.boxes.setAttribute("aria-hidden", "true");
    this.named = new URLSearchParams({ clip: hit.clip }).toString();
    const [play, image, word] = [this.stage.querySelector(".play"), this.stage.querySelector("img"), this.stage.querySelector("span")];
    play.setAttribute("aria-label", `play ${hit.caption || hit.clip}`);
    const bare = () => {
      image.remove();
      play.classList.add("bare");
      word.textContent = "no picture";
    };
    if (noPictures) {
      bare();
      play.disabled = true;
    } else {
      image.addEventListener("error", bare);
      image.src = `/still?${this.named}`;
      play.addEventListener("click", () => this.toggle());
    }
  }

  get start() {
    return (this.hit.start ?? 0) - this.offset;
  }

  get end() {
    return this.hit.end === null ? Infinity : this.hit.end - this.offset;
  }

  say(text, bad = false) {
    this.note.textContent = text;
    this.note.classList.toggle("bad", bad);
  }

  pause() {
    this.video?.pause();
  }

  close() {
    if (!this.video) return;
    this.pause();
    this.video.removeAttribute("src"); // ends the download
    this.video.load();
  }

  async toggle() {
    if (this.stage.querySelector(".play")?.disabled) return;
    if (this.video && !this.video.paused) {
      this.pause();
      return;
    }
    if (!(await this.ready())) return;
    this.started(this);
    await this.video.play().catch((error) => {
      if (error.name !== "AbortError") this.say(error.message, true);
    });
  }

  // Loads the video at the clip's start: the file, or a copy if the browser cannot play the file. Returns false on failure.
  ready() {
    this.opening ??= this.open().catch((error) => {
      this.opening = null;
      this.say(error.message, true);
      return false;
    });
    return this.opening;
  }

  async open() {
    this.say("");
    const video = document.createElement("video");
    video.controls = video.playsInline = true;
    video.preload = "auto";
    video.setAttribute("aria-label", this.hit.caption || this.hit.clip);
    const span = `#t=${this.start}${Number.isFinite(this.end) ? `,${this.end}` : ""}`;
    if (!(await loads(video, `/video?${this.named}${span}`))) {
      this.say("this browser cannot play the file; converting it");
      const copy = await ask("copy", { clip: this.hit.clip });
      this.offset = copy.begin;
      if (!(await loads(video, `/copy?${this.named}`))) throw new Error("this browser cannot play H.264 video");
      this.say(copy.cut ? `a converted copy of the first ${Math.round(copy.end - copy.begin)} s, without sound` : "a converted copy, without sound");
    }
    video.currentTime = Math.max(this.start, 0);
    this.watch(video);
    const focused = this.stage.contains(document.activeElement);
    this.stage.replaceChildren(video, this.boxes);
    this.video = video;
    if (focused) video.focus();
    return true;
  }

  // Stops at the clip's end, restarts at its start, and draws boxes with each frame.
  watch(video) {
    const seen = () => {
      if (!video.paused && !this.over && video.currentTime >= this.end - TINY) {
        this.over = true;
        video.pause();
        video.currentTime = this.end - TINY; // still the clip's last frame
      }
      this.draw();
    };
    const frame = () => {
      seen();
      video.requestVideoFrameCallback(frame);
    };
    if (video.requestVideoFrameCallback) video.requestVideoFrameCallback(frame);
    for (const name of ["timeupdate", "seeked", "pause"]) video.addEventListener(name, seen);
    video.addEventListener("seeked", () => {
      this.over &&= video.currentTime >= this.end - 2 * TINY;
    });
    video.addEventListener("play", () => {
      const at = video.currentTime;
      if (at < this.start - TINY || at >= this.end - 2 * TINY) {
        this.over = true; // until it is back at the start
        video.currentTime = Math.max(this.start, 0);
      }
      this.started(this);
    });
  }

  async toggleBoxes(stream, pressed) {
    this.frames = [];
    this.draw();
    this.wanted = pressed ? stream : "";
    if (!pressed) return;
    try {
      const { frames } = await ask("boxes", { clip: this.hit.clip, stream });
      if (!(await this.ready()) || this.wanted !== stream) return; // pressed again meanwhile
      this.frames = frames;
      const middle = frames[Math.floor(frames.length / 2)];
      // If nothing plays yet, show a frame that has boxes.
      if (middle && this.video.paused && Math.abs(this.video.currentTime - this.start) < 0.05) {
        this.video.currentTime = middle.from - this.offset + TINY;
      }
      this.draw();
      if (!frames.length) this.say("no frames with boxes");
    } catch (error) {
      this.say(error.message, true);
    }
  }

  draw() {
    const now = this.video ? this.video.currentTime + this.offset + TINY : NaN;
    const frame = this.frames.findLast(({ from, until }) => from <= now && now < until);
    if (frame === this.drawn) return;
    this.drawn = frame;
    if (!frame) {
      this.boxes.replaceChildren();
      return;
    }
    // Map pixels of the frame to the picture inside the player.
    const { videoWidth, videoHeight } = this.video;
    const [width, height] = frame.size;
    const inner = element("svg", { viewBox: `0 0 ${width} ${height}`, width: videoWidth, height: videoHeight, preserveAspectRatio: "none" });
    for (const { box, label, number, score } of [...frame.boxes].reverse()) { // the best is drawn last, over the others
      const [x0, y0, x1, y1] = box;
      const colour = COLOURS[number % COLOURS.length];
      const size = height / 22;
      inner.append(element("rect", { x: x0, y: y0, width: Math.max(x1 - x0, 0), height: Math.max(y1 - y0, 0), stroke: colour }));
      const right = x0 > 0.6 * width; // a label stays in the frame
      const x = right ? Math.min(x1, width) - size / 4 : Math.max(x0, 0) + size / 4;
      const text = element("text", { x, y: y0 < 1.2 * size ? y0 + size : y0 - size / 4, "font-size": size, "text-anchor": right ? "end" : "start" });
      text.textContent = score === null ? label : `${label} ${score.toFixed(2)}`;
      inner.append(text);
    }
    this.boxes.setAttribute("viewBox", `0 0 ${videoWidth} ${videoHeight}`);
    this.boxes.replaceChildren(inner);
  }
}

function element(name, attributes) {
  const made = document.createElementNS(SVG, name);
  for (const [key, value] of Object.entries(attributes)) made.setAttribute(key, value);
  return made;
}

// Returns whether a video element can show a source. Audio alone has no width. A phone may load no frame before it plays.
function loads(video, source) {
  return new Promise((resolve) => {
    const over = new AbortController();
    const done = (works) => {
      over.abort();
      resolve(works);
    };
    const on = (name, listener) => video.addEventListener(name, listener, { signal: over.signal });
    on("error", () => done(false));
    on("loadeddata", () => done(video.videoWidth > 0));
    on("loadedmetadata", () => setTimeout(() => done(video.videoWidth > 0), 3000));
    video.src = source;
  });
}
