// The page: each picture goes to POST /predict, and is shown as given, as the network sees it, and with its classes.
"use strict";

const TOP = 5;
const AT_ONCE = 8; // pictures under way; the server takes more, but answers arrive in a useful order
const results = document.getElementById("results");
const status = document.getElementById("status");
const queue = [];
let running = 0;

function element(name, attributes = {}, ...children) {
  const made = Object.assign(document.createElement(name), attributes);
  made.append(...children);
  return made;
}

function percent(value) {
  return `${(100 * value).toFixed(1)} %`;
}

function classify(pictures) {
  queue.push(...pictures);
  while (running < AT_ONCE && queue.length) {
    running += 1;
    next().finally(() => { running -= 1; classify([]); });
  }
  status.textContent = running ? `Classifying; ${running + queue.length} to go` : status.textContent;
}

async function next() {
  const picture = queue.shift();
  const began = performance.now();
  let prediction;
  try {
    prediction = await predict(picture);
  } catch {
    prediction = {error: "was not classified: the server cannot be reached"};
  }
  const milliseconds = Math.round(performance.now() - began);
  results.prepend(card(picture, prediction, milliseconds));
  status.textContent = prediction.error ? `${nameOf(picture)} ${prediction.error}` :
    `${nameOf(picture)}: ${prediction.class}, ${percent(prediction.probability)}`;
}

async function predict(picture) {
  const form = new FormData();
  form.append("picture", picture, "picture");
  const response = await fetch("/predict?pixels=true", {method: "POST", body: form});
  if (response.status === 503) {
    await new Promise(resolve => setTimeout(resolve, 1000 * (response.headers.get("Retry-After") ?? 1)));
    return predict(picture);
  }
  const answer = await response.json();
  return response.ok ? answer.predictions[0] : {error: answer.detail.replace(/^picture /, "")};
}

function nameOf(picture) {
  return picture.name || "pasted picture";
}

function card(picture, prediction, milliseconds) {
  const shown = element("div", {className: "pictures"}, figure(given(picture), "as given"));
  const words = element("div", {}, element("h2", {textContent: prediction.class ?? "Not classified"}));
  if (prediction.error) {
    words.append(element("p", {className: "error", textContent: `${nameOf(picture)} ${prediction.error}`}));
  } else {
    const seen = element("img", {src: prediction.pixels, className: "pixels", alt: `${nameOf(picture)}, as the network sees it`});
    shown.append(figure(seen, "as the network sees it"));
    const doubt = prediction.certain ? "" : "not certain, perhaps none of the classes; ";
    words.append(element("p", {textContent: `${doubt}${nameOf(picture)}, ${milliseconds} ms`}), bars(prediction.probabilities));
  }
  return element("li", {}, shown, words);
}

function given(picture) {
  const image = element("img", {src: URL.createObjectURL(picture), alt: `${nameOf(picture)}, as given`});
  image.onload = () => URL.revokeObjectURL(image.src);
  image.onerror = () => {
    URL.revokeObjectURL(image.src);
    image.replaceWith(element("div", {className: "note", textContent: "This browser cannot show the file."}));
  };
  return image;
}

function figure(content, caption) {
  return element("figure", {}, content, element("figcaption", {textContent: caption}));
}

function bars(probabilities) {
  const best = Object.entries(probabilities).sort((one, other) => other[1] - one[1]).slice(0, TOP);
  const list = element("dl", {className: "bars"});
  for (const [name, probability] of best) {
    list.append(element("dt", {textContent: name}), element("dd", {}, bar(probability)), element("dd", {textContent: percent(probability)}));
  }
  return list;
}

function bar(share) {
  const [svg, rect] = ["svg", "rect"].map(name => document.createElementNS("http://www.w3.org/2000/svg", name));
  const attributes = {viewBox: "0 0 1 1", preserveAspectRatio: "none", "aria-hidden": true};
  Object.entries(attributes).forEach(([name, value]) => svg.setAttribute(name, value));
  Object.entries({width: share, height: 1}).forEach(([name, value]) => rect.setAttribute(name, value));
  svg.append(rect);
  return svg;
}

// Pick, drop, paste.

const files = document.getElementById("files");
const drop = document.getElementById("drop");
files.addEventListener("change", () => { classify(files.files); files.value = ""; });
document.addEventListener("dragover", event => { event.preventDefault(); drop.classList.add("over"); });
document.addEventListener("dragleave", event => { if (!event.relatedTarget) drop.classList.remove("over"); });
document.addEventListener("drop", event => {
  event.preventDefault();
  drop.classList.remove("over");
  classify(event.dataTransfer.files);
});
document.addEventListener("paste", event => classify(event.clipboardData.files));

// Draw: white on black, as the digits are, and cut to the ink, because theirs fill the frame.

const canvas = document.getElementById("canvas");
const pen = canvas.getContext("2d", {willReadFrequently: true});
let at = null;

function clear() {
  pen.fillStyle = "#000";
  pen.fillRect(0, 0, canvas.width, canvas.height);
}

function place(event) {
  const box = canvas.getBoundingClientRect();
  return [(event.clientX - box.x) * canvas.width / box.width, (event.clientY - box.y) * canvas.height / box.height];
}

canvas.addEventListener("pointerdown", event => {
  canvas.setPointerCapture(event.pointerId);
  at = place(event);
});
canvas.addEventListener("pointermove", event => {
  if (!at) return;
  const to = place(event);
  Object.assign(pen, {strokeStyle: "#fff", lineWidth: 24, lineCap: "round", lineJoin: "round"});
  pen.beginPath();
  pen.moveTo(...at);
  pen.lineTo(...to);
  pen.stroke();
  at = to;
});
canvas.addEventListener("pointerup", () => {
  at = null;
  const cut = drawing();
  if (cut) cut.toBlob(blob => classify([new File([blob], "drawing.png", {type: "image/png"})]));
});
document.getElementById("clear").addEventListener("click", clear);
clear();

function drawing() {
  const {width, height} = canvas;
  const {data} = pen.getImageData(0, 0, width, height);
  let [left, right, top, bottom] = [width, 0, height, 0];
  for (let y = 0; y < height; y += 1) {
    for (let x = 0; x < width; x += 1) {
      if (data[4 * (y * width + x)] > 64) {
        [left, right, top, bottom] = [Math.min(left, x), Math.max(right, x + 1), Math.min(top, y), Math.max(bottom, y + 1)];
      }
    }
  }
  if (left >= right) return null;
  const side = Math.max(right - left, bottom - top);
  const cut = element("canvas", {width: side, height: side});
  const ink = cut.getContext("2d");
  ink.fillStyle = "#000";
  ink.fillRect(0, 0, side, side);
  const place = [(side - right + left) / 2, (side - bottom + top) / 2];
  ink.drawImage(canvas, left, top, right - left, bottom - top, ...place, right - left, bottom - top);
  return cut;
}
