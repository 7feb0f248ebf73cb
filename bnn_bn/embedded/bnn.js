// A packed network in a browser or in node: load(net, kernels), then run(pixels).
"use strict";
var bnn = (function () {
  const GOOD = "the newest Chrome, Edge, Firefox or Safari can do it";

  function fail(text) { throw new Error(text); }

  async function unpack(text) { // the bytes of gzip in base64
    const packed = Uint8Array.from(atob(text), c => c.charCodeAt(0));
    const stream = new Blob([packed]).stream().pipeThrough(new DecompressionStream("gzip"));
    return new Uint8Array(await new Response(stream).arrayBuffer());
  }

  function crc32(bytes) {
    let crc = -1;
    for (const b of bytes) {
      crc ^= b;
      for (let k = 0; k < 8; k++) crc = crc >>> 1 ^ (crc & 1 ? 0xedb88320 : 0);
    }
    return (crc ^ -1) >>> 0;
  }

  async function whole(part, name) { // the bytes, if they are those that were written
    let bytes = null;
    try { bytes = await unpack(part.gzip); } catch (e) { /* told below */ }
    if (bytes && bytes.length === part.bytes && crc32(bytes) === part.crc32) return bytes;
    return fail(`${name} is damaged: its checksum is wrong. Copy the folder again.`);
  }

  function checkBrowser() {
    if (typeof WebAssembly !== "object") fail(`This browser has no WebAssembly; ${GOOD}.`);
    if (typeof DecompressionStream !== "function")
      fail(`This browser cannot unpack gzip; ${GOOD}.`);
  }

  async function start(code, net, image) { // memory with the network in it, and its functions
    const memory = new WebAssembly.Memory({initial: Math.ceil(net.memory / 65536)});
    const top = new WebAssembly.Global({value: "i32", mutable: true}, net.start); // stack below
    const env = {__linear_memory: memory, __stack_pointer: top};
    const {instance} = await WebAssembly.instantiate(code, {env});
    new Uint8Array(memory.buffer).set(image, net.start);
    return {memory, functions: instance.exports};
  }

  function valuesOf(net) { // the number that each byte stands for, for each channel
    return net.mean.map((mean, c) => Float32Array.from({length: 256}, (_, v) =>
      net.zeros ? v - net.zeros[c] : (v / 255 - mean) / net.std[c]));
  }

  class Network {
    constructor(net, kind, {memory, functions}) {
      Object.assign(this, {net, kind, functions, values: valuesOf(net)});
      const size = net.channels * net.height * net.width;
      this.input = new (net.whole ? Uint8Array : Float32Array)(memory.buffer, net.input, size);
      this.output = new Float32Array(memory.buffer, net.output, net.outputs);
    }

    // logits of bytes, row by row with the channels last
    run(pixels, height = this.net.height, width = this.net.width) {
      const {net, input, values} = this, plane = net.height * net.width;
      this.check(pixels, height, width);
      for (let c = 0; c < net.channels; c++)
        for (let i = 0; i < plane; i++)
          input[c * plane + i] = net.whole ? pixels[i * net.channels + c]
                                           : values[c][pixels[i * net.channels + c]];
      return this.compute();
    }

    // logits of normalised numbers, channel by channel
    runFloats(numbers, height = this.net.height, width = this.net.width) {
      this.check(numbers, height, width);
      this.input.set(this.taken(numbers));
      const bad = this.net.whole ? Number.isNaN : v => !Number.isFinite(v); // Infinity is a byte
      return numbers.some(bad) ? new Float32Array(this.net.outputs).fill(NaN) : this.compute();
    }

    // what the memory takes of normalised numbers: their bytes, distances from zero points, or them
    taken(numbers) {
      const {net, values} = this, plane = net.height * net.width;
      if (net.whole) return this.bytesOf(numbers);
      if (!net.zeros) return numbers;
      return Float32Array.from(this.bytesOf(numbers), (v, i) => values[Math.floor(i / plane)][v]);
    }

    // the bytes that normalised numbers were made of, rounded as in Python
    bytesOf(numbers) {
      const {net, input} = this, plane = net.height * net.width, f = Math.fround;
      return Uint8Array.from(input, (_, i) => {
        const c = Math.floor(i / plane), std = f(net.std[c]), mean = f(net.mean[c]);
        const v = f(f(f(f(numbers[i]) * std) + mean) * 255), down = Math.floor(v);
        const odd = down % 2 !== 0, up = v - down > 0.5 || v - down === 0.5 && odd;
        return Math.min(255, Math.max(0, down + (up ? 1 : 0)));
      });
    }

    check(pixels, height, width) {
      const {net, input} = this;
      if (height === net.height && width === net.width && pixels.length === input.length) return;
      fail(`a picture of ${height}x${width} pixels, ${pixels.length} numbers: this page was made ` +
           `for ${net.height}x${net.width}x${net.channels}; resize it or export for that size`);
    }

    compute() {
      const {rows, row, count, table, scratch, spreads = []} = this.net, f = this.functions;
      let done = 0;
      for (const [end, bits, words, numbers] of spreads) { // in float32: signs become numbers
        f.run(rows + done * row, end - done, table, scratch);
        f.spread(bits, words, numbers);
        done = end;
      }
      f.run(rows + done * row, count - done, table, scratch);
      return this.output.slice();
    }

    probabilities(logits) {
      const most = Math.max(...logits), e = Array.from(logits, v => Math.exp(v - most));
      const sum = e.reduce((a, b) => a + b);
      return e.map(v => v / sum);
    }

    time(least = 30) { // milliseconds of a picture, over at least that many milliseconds
      let n = 0, passed = 0;
      const begun = performance.now();
      do {
        this.compute();
        n++;
        passed = performance.now() - begun;
      } while (passed < least && n < 1000);
      return passed / n;
    }
  }

  function testPicture(n) { // the same bytes as in Python
    let state = 1;
    return Uint8Array.from({length: n}, () => {
      state = Math.imul(state, 1664525) + 1013904223 >>> 0;
      return state >>> 24;
    });
  }

  function isExact(network) { // does it compute the bits of Python?
    const half = 2 ** -12, {functions, net} = network;
    if (functions.fused(1 + half, 1 + half, -1 - 2 * half) !== half * half) return false;
    const got = new Uint32Array(network.run(testPicture(network.input.length)).buffer);
    return net.test.every((bits, i) => bits === got[i]);
  }

  // The network, by the fastest kernels that pass the test; an Error with a sentence otherwise
  async function load(net, kernels, kinds = ["relaxed", "exact"]) {
    checkBrowser();
    const image = await whole(net.image, "net.js");
    let valid = 0;
    for (const kind of kinds) {
      const code = await whole(kernels[kind], "kernels.js");
      if (!WebAssembly.validate(code)) continue;
      valid++;
      const network = new Network(net, kind, await start(code, net, image));
      if (isExact(network)) return network;
    }
    return fail(valid ? "This browser computes other bits than the engine; please report this."
                      : `This browser has no WebAssembly SIMD; ${GOOD}.`);
  }

  // The same network in float32, if the page has it: the same test, and so the same bits
  async function loadFloats(net, kernels, kind) {
    return net.float ? load({...net, ...net.float}, kernels, [kind]) : null;
  }

  return {load, loadFloats, testPicture};
})();
if (typeof module === "object") module.exports = bnn;
