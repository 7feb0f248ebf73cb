// Kernels of one bit and onnxruntime-web in one page, in turn: ?net=FOLDER&rounds=N
"use strict";
(async () => {
  const asked = new URLSearchParams(location.search);
  const send = found => fetch("/answer", {method: "POST", body: JSON.stringify(found)});
  const script = src => new Promise((done, fail) =>
    document.head.append(Object.assign(document.createElement("script"),
      {src, onload: done, onerror: () => fail(new Error(`${src} is missing`))})));

  async function timed(work, least = 40) { // milliseconds of a call
    let n = 0, passed = 0;
    const begun = performance.now();
    do { await work(); n++; passed = performance.now() - begun; } while (passed < least);
    return passed / n;
  }

  try {
    const folder = asked.get("net");
    for (const name of ["kernels.js", "net.js", "bnn.js"]) await script(`/${folder}/${name}`);
    await script("/ort/ort.wasm.min.js");
    Object.assign(ort.env.wasm, {numThreads: 1, wasmPaths: "/ort/"});
    const works = {}, net = bnn_net;
    for (const kind of ["relaxed", "exact"]) {
      const network = await bnn.load(net, bnn_kernels, [kind]);
      network.run(bnn.testPicture(network.input.length));
      works[kind] = () => network.compute();
    }
    const session = await ort.InferenceSession.create(`/${folder}.onnx`);
    const n = net.channels * net.height * net.width;
    const x = Float32Array.from(bnn.testPicture(n), v => v / 128 - 1);
    const images = new ort.Tensor("float32", x, [1, net.channels, net.height, net.width]);
    works.onnxruntime_web = () => session.run({images});
    const names = Object.keys(works), rounds = [];
    for (const name of names) await timed(works[name], 1000); // until compiled for good
    for (let r = 0; r < +asked.get("rounds"); r++) {
      const row = {};
      for (const name of r % 2 ? names : [...names].reverse()) row[name] = await timed(works[name]);
      rounds.push(row);
    }
    await send({browser: navigator.userAgent, rounds});
  } catch (e) { await send({error: String(e.message || e)}); }
})();
