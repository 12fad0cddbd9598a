// Classify pictures with the model of model.js, shown to it as timm's transform does: Pillow's filter, across and then down.
"use strict";

const facts = LGD_MODEL.facts;
const TOP = 5;
const element = (id) => document.getElementById(id);
const bytesOf = (text) => Uint8Array.from(atob(text), (letter) => letter.charCodeAt(0));

// ---------------------------------------------------------------------------------------------------------- pixels

const FILTERS = {
  bicubic: { support: 2, weight(x) {
    const a = -0.5;
    x = Math.abs(x);
    if (x < 1) return ((a + 2) * x - (a + 3)) * x * x + 1;
    return x < 2 ? (((x - 5) * x + 8) * x - 4) * a : 0;
  } },
  bilinear: { support: 1, weight: (x) => Math.max(0, 1 - Math.abs(x)) },
};

// Weights of each output pixel, in fixed point of 22 bits, as Pillow computes them for 8-bit images.
function weights(from, to, filter) {
  const scale = from / to, stretch = Math.max(1, scale), support = filter.support * stretch;
  return Array.from({ length: to }, (_, index) => {
    const centre = (index + 0.5) * scale;
    const first = Math.max(0, Math.trunc(centre - support + 0.5));
    const last = Math.min(from, Math.trunc(centre + support + 0.5));
    const raw = Array.from({ length: last - first }, (_, k) => filter.weight((first + k - centre + 0.5) / stretch));
    const sum = raw.reduce((a, b) => a + b, 0);
    return { first, fixed: raw.map((w) => Math.trunc((w / sum) * 4194304 + (w < 0 ? -0.5 : 0.5))) };
  });
}

const clip = (sum) => Math.min(255, Math.max(0, Math.floor((sum + 2097152) / 4194304)));

// One axis: lines of `from` RGBA pixels, `step` apart, become lines of `to`.
function resample(source, { lines, from, to, step, line, outStep, outLine }, filter) {
  const out = new Uint8ClampedArray(lines * to * 4), rows = weights(from, to, filter);
  for (let l = 0; l < lines; l++) {
    rows.forEach(({ first, fixed }, index) => {
      for (let channel = 0; channel < 3; channel++) {
        let sum = 0, at = l * line + first * step + channel;
        for (const weight of fixed) { sum += source[at] * weight; at += step; }
        out[l * outLine + index * outStep + channel] = clip(sum);
      }
    });
  }
  return out;
}

function resize({ data, width, height }, newWidth, newHeight, filter) {
  if (newWidth !== width) {
    data = resample(data, { lines: height, from: width, to: newWidth, step: 4, line: width * 4, outStep: 4, outLine: newWidth * 4 }, filter);
    width = newWidth;
  }
  if (newHeight !== height) {
    data = resample(data, { lines: width, from: height, to: newHeight, step: width * 4, line: 4, outStep: width * 4, outLine: 4 }, filter);
    height = newHeight;
  }
  return { data, width, height };
}

const even = (x) => { const floor = Math.floor(x); return x - floor === 0.5 ? floor + (floor % 2) : Math.round(x); };

// Short side to size / crop_pct, centre crop: planes of uint8 [3, size, size].
function pixels(image) {
  const size = facts.size, short = Math.floor(size / facts.crop_pct);
  const { width, height } = image;
  const long = Math.trunc((short * Math.max(width, height)) / Math.min(width, height));
  const filter = FILTERS[facts.interpolation] || FILTERS.bicubic;
  const small = width <= height ? resize(image, short, long, filter) : resize(image, long, short, filter);
  const left = even((small.width - size) / 2), top = even((small.height - size) / 2);
  const planes = new Uint8Array(3 * size * size);
  for (let y = 0; y < size; y++) {
    for (let x = 0; x < size; x++) {
      const at = ((y + top) * small.width + x + left) * 4;
      for (let channel = 0; channel < 3; channel++) planes[(channel * size + y) * size + x] = small.data[at + channel];
    }
  }
  return planes;
}

// ---------------------------------------------------------------------------------------------------------- answers

let session = null;

async function load() {
  const script = URL.createObjectURL(new Blob([bytesOf(LGD_RUNTIME.mjs)], { type: "text/javascript" }));
  ort.env.wasm.numThreads = 1; // threads need headers that a file:// page can't have
  ort.env.wasm.wasmPaths = { mjs: script };
  ort.env.wasm.wasmBinary = bytesOf(LGD_RUNTIME.wasm).buffer;
  session = await ort.InferenceSession.create(bytesOf(LGD_MODEL.onnx), { executionProviders: ["wasm"] });
}

function softmax(logits) {
  const most = Math.max(...logits), powers = Array.from(logits, (x) => Math.exp(x - most));
  const sum = powers.reduce((a, b) => a + b, 0);
  return powers.map((x) => x / sum);
}

let others = null; // names that the user typed, with their text embeddings and the temperature
let seen = null; // what the model answered to the last picture, and how long it took

const names = () => (others ? others.names : facts.label_names);

// Logits of the model's own names, or cosines with the text embeddings of others over the temperature.
function logits() {
  if (!others) return seen.logits;
  return others.bank.map((row) => row.reduce((sum, x, index) => sum + x * seen.embedding[index], 0) / others.temperature);
}

async function classify(image) {
  const planes = new ort.Tensor("uint8", pixels(image), [1, 3, facts.size, facts.size]);
  const results = await session.run({ images: planes });
  seen = { logits: results.logits.data, embedding: results.embedding && results.embedding.data, milliseconds: 0 };
}

function rank() {
  if (!seen) return;
  const probabilities = softmax(logits()), milliseconds = seen.milliseconds;
  const best = probabilities.map((p, index) => [p, names()[index]]).sort((a, b) => b[0] - a[0]).slice(0, TOP);
  element("answers").replaceChildren(...best.map(([probability, name]) => row(name, probability)));
  globalThis.LGD_ANSWER = { names: names(), probabilities, milliseconds };
}

async function answer(image) {
  const start = performance.now();
  await classify(image);
  seen.milliseconds = performance.now() - start;
  rank();
  element("latency").textContent = `${seen.milliseconds.toFixed(0)} ms on this device, ${image.width} x ${image.height} pixels.`;
}

function row(name, probability) {
  const item = document.createElement("li"), percent = `${(100 * probability).toFixed(1)} %`;
  const bar = document.createElement("span");
  bar.className = "bar";
  bar.style.width = `${100 * probability}%`;
  bar.setAttribute("aria-hidden", "true");
  item.append(bar, ...[name, percent].map((text) => Object.assign(document.createElement("span"), { textContent: text })));
  return item;
}

// ------------------------------------------------------------------------------------------------------- other names

const sayNames = (text) => { element("names-state").textContent = text; };

// The server of `lgd-timm demo` embeds names; the picture stays here, and is not classified again.
async function useNames(list) {
  sayNames("Reading the names ...");
  try {
    const reply = await fetch("names", {
      method: "POST", headers: { "Content-Type": "application/json" }, body: JSON.stringify({ names: list }),
    });
    const found = await reply.json();
    if (!reply.ok) return sayNames(found.error);
    others = found;
  } catch {
    return sayNames("The server does not answer. Is lgd-timm demo still running?");
  }
  sayNames(`${others.names.length} names are compared with the picture.`);
  rank();
}

function useOwnNames() {
  others = null;
  sayNames("");
  rank();
}

function offerNames() {
  if (!facts.asks) return;
  element("other").hidden = false;
  element("own").addEventListener("click", useOwnNames);
  element("other").addEventListener("submit", (event) => {
    event.preventDefault();
    useNames(element("names").value.split("\n").map((line) => line.trim()).filter(Boolean));
  });
}

// ---------------------------------------------------------------------------------------------------------- pictures

function draw(source, width, height) {
  const canvas = element("shown"), context = canvas.getContext("2d", { willReadFrequently: true, colorSpace: "srgb" });
  Object.assign(canvas, { width, height, hidden: false });
  context.fillStyle = "white";
  context.fillRect(0, 0, width, height);
  context.drawImage(source, 0, 0);
  return context.getImageData(0, 0, width, height);
}

async function open(file) {
  stopCamera();
  say("Reading the picture ...");
  let bitmap;
  try {
    bitmap = await createImageBitmap(file, { colorSpaceConversion: "none", imageOrientation: "from-image" });
  } catch {
    return say(`${file.name || "This"} is no picture that this browser reads. Try a JPEG or PNG.`);
  }
  await answer(draw(bitmap, bitmap.width, bitmap.height));
  say("Ready.");
}

const say = (text) => { element("state").textContent = text; };

let stream = null;

async function startCamera() {
  try {
    stream = await navigator.mediaDevices.getUserMedia({ video: { facingMode: "environment" } });
  } catch {
    return say("There is no camera, or it may not be used. Choose a picture.");
  }
  const video = element("video");
  video.srcObject = stream;
  await video.play();
  element("camera").setAttribute("aria-pressed", "true");
  element("camera").textContent = "Stop the camera";
  while (stream) {
    await answer(draw(video, video.videoWidth, video.videoHeight));
    await new Promise((resolve) => setTimeout(resolve, 200));
  }
}

function stopCamera() {
  if (stream) stream.getTracks().forEach((track) => track.stop());
  stream = null;
  element("camera").setAttribute("aria-pressed", "false");
  element("camera").textContent = "Use the camera";
}

function listen() {
  const drop = element("drop");
  element("file").addEventListener("change", (event) => event.target.files[0] && open(event.target.files[0]));
  element("camera").addEventListener("click", () => (stream ? stopCamera() : startCamera()));
  drop.addEventListener("dragover", (event) => { event.preventDefault(); drop.classList.add("over"); });
  drop.addEventListener("dragleave", () => drop.classList.remove("over"));
  drop.addEventListener("drop", (event) => {
    event.preventDefault();
    drop.classList.remove("over");
    if (event.dataTransfer.files[0]) open(event.dataTransfer.files[0]);
  });
  addEventListener("paste", (event) => event.clipboardData.files[0] && open(event.clipboardData.files[0]));
}

function describe() {
  document.title = facts.title;
  element("title").textContent = facts.title;
  element("about").replaceChildren(...Object.entries(facts.about).map(([name, value]) => {
    const line = document.createElement("tr");
    line.append(Object.assign(document.createElement("th"), { scope: "row", textContent: name }));
    line.append(Object.assign(document.createElement("td"), { textContent: value }));
    return line;
  }));
}

describe();
listen();
offerNames();
globalThis.LGD_READY = load().then(() => say("Ready."), (error) => say(`The model can't run here: ${error.message}`));
