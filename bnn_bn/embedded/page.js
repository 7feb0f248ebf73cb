// The page: pictures in, classes out.
"use strict";
(function () {
  const at = id => document.getElementById(id);
  const pad = at("pad"), ink = pad.getContext("2d", {willReadFrequently: true});
  const TOP = 5, MOST = 20; // classes of an answer; names in the first sentence
  const TURNS = 3;          // of measuring; the fastest counts
  let network = null, net = null, video = null, floats = null, later = 0, seen = null;
  let asked = 0;            // for a camera, a picture or an end: what waits gives way to the next

  function say(text, bad = true) {
    at("told").textContent = text;
    at("told").className = bad ? "bad" : "quiet";
    at("told").hidden = !text;
  }

  function canvas(width, height) {
    const made = Object.assign(document.createElement("canvas"), {width, height});
    return [made, made.getContext("2d", {willReadFrequently: true})];
  }

  // Pictures ---------------------------------------------------------------------------------

  function isNetworks(width, height, border = 0) { // is it the size that it sees, inside a border?
    return width === net.width - 2 * border && height === net.height - 2 * border;
  }

  function whole(width, height) { // all of a picture to all that the network sees
    return [0, 0, width, height, 0, 0, net.width, net.height];
  }

  function part(width, height) { // of a picture: what is taken of it, and where that goes
    const {border, method, resized} = net.resize;
    const w = net.width - 2 * border, h = net.height - 2 * border;
    if (border && isNetworks(width, height)) return whole(width, height); // it has its border
    if (method === "squish") return [0, 0, width, height, border, border, w, h];
    if (method === "pad") {
      const scale = Math.min(w / width, h / height), a = width * scale, b = height * scale;
      return [0, 0, width, height, border + (w - a) / 2, border + (h - b) / 2, a, b];
    }
    let down = Math.min(width / w, height / h), across = down; // pixels for one of the network
    if (method === "crop" && Array.isArray(resized))
      [down, across] = [height / resized[0], width / resized[1]];
    else if (method === "crop") down = across = Math.min(width, height) / resized;
    const a = w * across, b = h * down;
    return [(width - a) / 2, (height - b) / 2, a, b, border, border, w, h];
  }

  function halved(source, box) { // in steps of two, since one large step leaves pixels out
    let [x, y, w, h, , , to_w, to_h] = box;
    while (w > 2 * to_w && h > 2 * to_h) {
      const [half, pen] = canvas(Math.ceil(w / 2), Math.ceil(h / 2));
      pen.drawImage(source, x, y, w, h, 0, 0, half.width, half.height);
      [source, x, y, w, h] = [half, 0, 0, half.width, half.height];
    }
    return [source, x, y, w, h, ...box.slice(4)];
  }

  function fitted(source, box) { // the pixels that the network takes, RGBA
    const [, pen] = canvas(net.width, net.height), [, , a, b, , , w, h] = box;
    pen.fillRect(0, 0, net.width, net.height);
    pen.fillStyle = "#fff"; // behind what is transparent
    pen.fillRect(...box.slice(4));
    pen.imageSmoothingQuality = "high";
    pen.imageSmoothingEnabled = a !== w || b !== h;
    pen.drawImage(...halved(source, box));
    return pen.getImageData(0, 0, net.width, net.height).data;
  }

  function bytes(rgba) { // grey as Pillow makes it, or the three colours
    const n = net.width * net.height, out = new Uint8Array(n * net.channels);
    for (let i = 0; i < n; i++) {
      const [r, g, b] = rgba.subarray(4 * i, 4 * i + 3);
      if (net.channels === 1) out[i] = r * 19595 + g * 38470 + b * 7471 + 0x8000 >> 16;
      else out.set([r, g, b], 3 * i);
    }
    return out;
  }

  function show(pixels, on = pad, pen = ink) { // bytes, enlarged
    const [small, to] = canvas(net.width, net.height);
    const image = to.createImageData(net.width, net.height);
    for (let i = 0; i < net.width * net.height; i++)
      for (let c = 0; c < 4; c++)
        image.data[4 * i + c] = c === 3 ? 255 : pixels[net.channels === 1 ? i : 3 * i + c];
    to.putImageData(image, 0, 0);
    pen.imageSmoothingEnabled = false;
    pen.drawImage(small, 0, 0, on.width, on.height);
  }

  function refusal(width, height) { // of a size, where it is not known how to make another of it
    const {method, border} = net.resize;
    const fits = isNetworks(width, height) || isNetworks(width, height, border);
    if (method !== "none" || fits) return "";
    return `A picture of ${height}×${width} pixels: ${net.height}×${net.width} are needed, since it ` +
      "is not known how the pictures of the training got their size. Resize it as they were.";
  }

  function take(source, width, height) {
    const refused = refusal(width, height);
    say(refused);
    if (refused) return;
    const pixels = bytes(fitted(source, part(width, height)));
    show(pixels);
    classify(pixels);
  }

  // Answers ----------------------------------------------------------------------------------

  function classify(pixels) {
    const p = network.probabilities(network.run(pixels));
    const order = p.map((v, i) => i).sort((a, b) => p[b] - p[a]).slice(0, TOP);
    at("answers").replaceChildren(...order.map(i => row(net.classes[i], p[i])));
    at("nothing").textContent = "";
    seen = {pixels, best: order[0]};
    clearTimeout(later);
    at("float").hidden = true; // it was of the picture before
    if (floats) later = setTimeout(compare, 150);
  }

  function compare() { // the answer in float32 beside that of one bit
    if (!seen) return;
    const {pixels, best} = seen;
    const p = network.probabilities(floats.run(pixels)), most = p.indexOf(Math.max(...p));
    at("float").hidden = false;
    at("float").textContent = `In float32: ${net.classes[most]} ${
      (100 * p[most]).toFixed(1)} %${most === best ? ", as with one bit" : ""}.`;
  }

  function row(name, p) {
    const li = document.createElement("li"), texts = [name, `${(100 * p).toFixed(1)} %`];
    li.style.setProperty("--p", `${100 * p}%`);
    li.append(...texts.map(t => Object.assign(document.createElement("span"), {textContent: t})));
    return li;
  }

  function times() { // milliseconds of both, in turns, since a machine is not always as fast
    const found = {ms: Infinity, slow: Infinity};
    for (let i = 0; i < TURNS; i++) {
      found.ms = Math.min(found.ms, network.time());
      if (floats) found.slow = Math.min(found.slow, floats.time());
    }
    return found;
  }

  function inFloats({ms, slow}) { // by the same loops, which multiply there
    const longer = ms ? `, ${(slow / ms).toFixed(1)} times as long` : "";
    return `${slow.toFixed(1)} ms for the same network${longer}`;
  }

  async function addFloats() { // behind the first answer, so that nobody waits for it
    try { floats = await window.bnn.loadFloats(net, window.bnn_kernels, network.kind); }
    catch (e) { say(e.message); }
    if (!floats) return;
    facts();
    compare();
  }

  function facts() {
    const found = times(), {ms} = found, kB = n => `${Math.round(n / 1000)} kB`;
    const kinds = {relaxed: "relaxed SIMD", exact: "SIMD without relaxed instructions"};
    const time = ms ? `${ms.toFixed(ms < 1 ? 2 : 1)} ms a picture, one thread`
                    : "less than this browser's clock shows";
    const known = [["Time", time],
                   ["Kernels", kinds[network.kind]], ["Packed file", kB(net.file)],
                   ["Same bits", "as the engine in Python, on a test picture at this start"]];
    if (net.accuracy) known.push(["Accuracy", `${(100 * net.accuracy).toFixed(1)} % on its test set`]);
    if (floats) known.splice(1, 0, ["In float32", inFloats(found)]);
    const cells = known.flatMap(([k, v]) => [["dt", k], ["dd", v]]);
    at("facts").replaceChildren(...cells.map(([tag, text]) =>
      Object.assign(document.createElement(tag), {textContent: text})));
  }

  // Input ------------------------------------------------------------------------------------

  async function takeFile(file) {
    stopCamera();
    const mine = asked;
    let image = null;
    try { image = await createImageBitmap(file); } catch (e) { /* told below */ }
    if (mine !== asked) return;
    if (image) take(image, image.width, image.height);
    else say(`${file.name || "This"} is not a picture that this browser can read.`);
  }

  function dropping() {
    const over = on => pad.classList.toggle("over", on);
    for (const area of [at("work"), document]) { // anywhere: else a browser leaves the page for it
      area.addEventListener("dragover", e => { e.preventDefault(); over(true); });
      area.addEventListener("dragleave", () => over(false));
      area.addEventListener("drop", e => {
        e.preventDefault();
        e.stopPropagation();
        over(false);
        if (e.dataTransfer.files.length) takeFile(e.dataTransfer.files[0]);
        else say("What was dropped is no file. Save the picture first, then drop it here.");
      });
    }
    document.addEventListener("paste", e => {
      if (e.clipboardData.files.length) takeFile(e.clipboardData.files[0]);
    });
    at("file").addEventListener("change", e => {
      if (e.target.files.length) takeFile(e.target.files[0]);
      e.target.value = "";
    });
  }

  function clear() {
    stopCamera();
    say("");
    ink.fillStyle = "#000";
    ink.fillRect(0, 0, pad.width, pad.height);
    if (net.channels > 1) invite();
    seen = null;
    at("answers").replaceChildren();
    clearTimeout(later);
    at("float").hidden = true;
    at("nothing").textContent = `No picture yet. Known: ${net.classes.slice(0, MOST).join(", ")}${
      net.classes.length > MOST ? " and more" : ""}.`;
  }

  function invite() { // on an empty square that nobody draws on
    Object.assign(ink, {fillStyle: "#999", font: "20px system-ui, sans-serif", textAlign: "center"});
    ink.fillText("No picture yet", pad.width / 2, pad.height / 2);
  }

  function drawing() { // white on black, with a finger or a mouse
    let last = null, waiting = false;
    const place = e => {
      const box = pad.getBoundingClientRect(), scale = pad.width / box.width;
      return [(e.clientX - box.left) * scale, (e.clientY - box.top) * scale];
    };
    const look = () => {
      waiting = false;
      classify(bytes(fitted(pad, whole(pad.width, pad.height))));
    };
    const stroke = e => {
      if (!last) return;
      const next = place(e);
      Object.assign(ink, {strokeStyle: "#fff", lineWidth: pad.width / 12, lineCap: "round"});
      ink.beginPath();
      ink.moveTo(...last);
      ink.lineTo(...next);
      ink.stroke();
      last = next;
      if (!waiting) requestAnimationFrame(look);
      waiting = true;
    };
    pad.addEventListener("pointerdown", e => {
      stopCamera();
      say("");
      pad.setPointerCapture(e.pointerId);
      last = place(e);
      stroke(e);
    });
    pad.addEventListener("pointermove", stroke);
    for (const end of ["pointerup", "pointercancel"])
      pad.addEventListener(end, () => { last = null; });
    at("clear").addEventListener("click", clear);
    at("clear").hidden = false;
    pad.classList.add("draws");
  }

  function end(stream) { for (const track of stream.getTracks()) track.stop(); }

  function stopCamera() { // also one that the browser still asks for
    asked++;
    if (!video) return;
    end(video.srcObject);
    video = null;
    at("camera").textContent = "Camera";
  }

  function nextFrame() {
    if (!video) return;
    if (video.videoWidth) take(video, video.videoWidth, video.videoHeight);
    requestAnimationFrame(nextFrame);
  }

  async function toggleCamera() {
    if (video) return stopCamera();
    const mine = ++asked;
    let stream = null;
    try {
      stream = await navigator.mediaDevices.getUserMedia({video: {facingMode: "environment"}});
      const made = Object.assign(document.createElement("video"), {srcObject: stream, muted: true});
      if (mine === asked) await made.play();
      if (mine !== asked) return end(stream);
      video = made;
      at("camera").textContent = "Stop";
      say("");
      nextFrame();
    } catch (e) {
      if (stream) end(stream);
      if (mine === asked) say(`The camera cannot be used: ${e.message}.`);
    }
  }

  function addSamples() {
    const size = net.width * net.height * net.channels;
    const all = Uint8Array.from(atob(net.samples), c => c.charCodeAt(0));
    for (let i = 0; i < all.length / size; i++) {
      const pixels = all.subarray(i * size, (i + 1) * size);
      const [small, pen] = canvas(net.width, net.height), button = document.createElement("button");
      show(pixels, small, pen);
      button.type = "button";
      button.setAttribute("aria-label", `sample ${i + 1}`);
      button.append(small);
      button.addEventListener("click", () => {
        stopCamera();
        show(pixels);
        classify(pixels);
        say("");
      });
      at("samples").append(button);
    }
  }

  // Start ------------------------------------------------------------------------------------

  function hint() {
    const ways = ["choose, drop or paste a picture"];
    if (net.channels === 1) ways.unshift("draw white on black");
    const text = ways.join(", or ");
    const first = text[0].toUpperCase() + text.slice(1);
    return `${first}. The network sees ${net.height}×${net.width} pixels.`;
  }

  async function start() {
    const files = {bnn_kernels: "kernels.js", bnn_net: "net.js", bnn: "bnn.js"};
    for (const [name, file] of Object.entries(files))
      if (!window[name]) return say(`${file} is missing or damaged. Copy the folder again.`);
    net = window.bnn_net;
    at("title").textContent = document.title = net.title;
    try { network = await window.bnn.load(net, window.bnn_kernels); }
    catch (e) { return say(e.message); }
    say("");
    at("work").hidden = false;
    at("hint").textContent = hint();
    pad.height = Math.round(pad.width * net.height / net.width);
    at("camera").hidden = net.resize.method === "none" || // its pictures have sizes of their own
      !(navigator.mediaDevices && navigator.mediaDevices.getUserMedia);
    at("camera").addEventListener("click", toggleCamera);
    clear();
    dropping();
    if (net.channels === 1) drawing();
    addSamples();
    facts();
    if (at("samples").firstChild) at("samples").firstChild.click();
    await addFloats();
  }

  start();
})();
