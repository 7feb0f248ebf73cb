// Runs a page's files in node: node web.js FOLDER PICTURES [KIND ...]; prints JSON.
const fs = require("fs"), vm = require("vm"), [folder, file, ...kinds] = process.argv.slice(2);
const tell = found => console.log(JSON.stringify(found));
try {
  for (const name of ["kernels.js", "net.js", "bnn.js"])
    vm.runInThisContext(fs.readFileSync(`${folder}/${name}`, "utf8"));
  const pictures = fs.readFileSync(file), n = bnn_net.height * bnn_net.width * bnn_net.channels;
  const bits = out => [...new Uint32Array(out.buffer)];
  const refusal = (network, size) => {
    try { network.run(new Uint8Array(size * size * bnn_net.channels), size, size); return ""; }
    catch (e) { return e.message; }
  };
  const all = network => Array.from({length: pictures.length / n}, (_, i) =>
    bits(network.run(pictures.subarray(n * i, n * i + n))));
  const plane = bnn_net.height * bnn_net.width; // channel by channel, normalised
  const normalised = p => Float32Array.from({length: n}, (_, i) => {
    const c = Math.floor(i / plane), v = p[i % plane * bnn_net.channels + c];
    return (v / 255 - bnn_net.mean[c]) / bnn_net.std[c];
  });
  const whole = network => Array.from({length: pictures.length / n}, (_, i) =>
    bits(network.runFloats(normalised(pictures.subarray(n * i, n * i + n)))));
  bnn.load(bnn_net, bnn_kernels, kinds.length ? kinds : undefined).then(async network => tell({
    floats: bnn_net.float && all(await bnn.loadFloats(bnn_net, bnn_kernels, network.kind)),
    kind: network.kind, refusal: refusal(network, bnn_net.height - 4),
    numbers: whole(network),
    float_numbers: bnn_net.float && whole(await bnn.loadFloats(bnn_net, bnn_kernels, network.kind)),
    bad: [NaN, Infinity].map(v => [...network.runFloats(new Float32Array(n).fill(v))].map(String)),
    logits: all(network)}),
  error => tell({error: error.message}));
} catch (e) { tell({error: e.message}); }
