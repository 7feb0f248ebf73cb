"""A packed network in a browser beside onnxruntime-web: one page, one thread, in turn.

    python bench/web.py [--ort FOLDER] [--rounds 21] [--out results/web.json]

Both runtimes are loaded into one page of headless Chromium and called in turn; the rival runs the
same network as float32 ONNX in its fastest form. FOLDER is `dist` of the npm package
onnxruntime-web; without it npm fetches the package into a temporary folder. It needs chromium
(Debian: chromium) and, without --ort, npm. The load of the machine stands in the result: where it is
above the number of cores, take the ratios, and those as provisional.
"""
import argparse, json, os, platform, shutil, subprocess, sys, tempfile, threading
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from statistics import median
from bnn_bn.deploy import load_packed
from bnn_bn.export import to_onnx
from bnn_bn.targets.web import to_web

NETS = dict(fashion='fashion-reactnet_mini', cifar10='cifar10-reactnet18-w50')
GOALS = dict(fashion=9, cifar10=10)
NOTE = ('provisional: the machine was shared, so milliseconds are too long; ratios are of turns '
        'side by side')
RIVAL, VERSION = 'onnxruntime_web', '1.30.0'
PAGE = '<!DOCTYPE html><title>bench</title><body><script src="web.js"></script></body>'

class Server(SimpleHTTPRequestHandler):
    "files of a folder, and one answer"
    def log_message(self, *args): pass
    def do_POST(self):
        self.server.answer = json.loads(self.rfile.read(int(self.headers['Content-Length'])))
        self.send_response(200)
        self.end_headers()
        self.server.done.set()

def fetched(folder):
    "onnxruntime-web, by npm"
    command = ['npm', 'install', '--prefix', str(folder), f'onnxruntime-web@{VERSION}']
    subprocess.run(command, check=True, capture_output=True)
    return folder/'node_modules/onnxruntime-web/dist'

def version_of(ort):
    "of a `dist`, by the package around it"
    if ort is None: return VERSION
    file = ort.resolve().parent/'package.json'
    package = json.loads(file.read_text()) if file.exists() else {}
    return package['version'] if package.get('name') == 'onnxruntime-web' else 'of unknown version'

def prepare(folder, ort):
    "pages, models and the rival in one folder"
    for short, name in NETS.items():
        to_web(name, folder/short)
        graph = load_packed(name).graph
        to_onnx(graph, folder/f'{short}.onnx', integers=False, shape=(1, *graph.info['size']))
    shutil.copytree(ort or fetched(folder/'npm'), folder/'ort')
    shutil.copy(Path(__file__).with_suffix('.js'), folder/'web.js')
    (folder/'index.html').write_text(PAGE)

def in_chromium(folder, query, seconds):
    "the answer of a page"
    server = ThreadingHTTPServer(('127.0.0.1', 0), lambda *a: Server(*a, directory=str(folder)))
    server.done, server.answer = threading.Event(), dict(error='no answer in time')
    threading.Thread(target=server.serve_forever, daemon=True).start()
    options = ['--headless', '--no-sandbox', '--disable-gpu', f'--user-data-dir={folder}/profile']
    url = f'http://127.0.0.1:{server.server_port}/index.html?{query}'
    process = subprocess.Popen(['chromium', *options, url], stdout=subprocess.DEVNULL,
                               stderr=subprocess.DEVNULL)
    try: server.done.wait(seconds)
    finally:
        process.terminate()
        process.wait(30)
        server.shutdown()
    return server.answer

def summary(short, rounds):
    "milliseconds and ratios of one network: medians, and the fastest round of each"
    def of(name): return [r[name] for r in rounds]
    def times(name): return round(median(r[RIVAL]/r[name] for r in rounds), 2)
    kinds = [k for k in rounds[0] if k != RIVAL]
    return dict(network=NETS[short], rounds=len(rounds), goal=GOALS[short],
                ms={k: round(median(of(k)), 4) for k in rounds[0]},
                least_ms={k: round(min(of(k)), 4) for k in rounds[0]},
                times_faster={k: times(k) for k in kinds},
                times_faster_least={k: round(min(of(RIVAL))/min(of(k)), 2) for k in kinds})

def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument('--ort', type=Path, help='`dist` of onnxruntime-web')
    parser.add_argument('--rounds', type=int, default=21, help='turns of all three')
    parser.add_argument('--out', type=Path, help='JSON file to write')
    asked, rows, before = parser.parse_args(), [], os.getloadavg()
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as d:
        prepare(Path(d), asked.ort)
        for short in NETS:
            found = in_chromium(Path(d), f'net={short}&rounds={asked.rounds}', 600)
            if 'error' in found: sys.exit(f'{short}: {found["error"]}')
            page = sum(f.stat().st_size for f in (Path(d)/short).iterdir())
            rows.append(dict(summary(short, found['rounds']), bytes=page))
            print(json.dumps(rows[-1]), flush=True)
    load = dict(before=before, after=os.getloadavg(), cores=os.cpu_count())
    report = dict(browser=found['browser'], rival=f'onnxruntime-web {version_of(asked.ort)}, wasm SIMD, float32',
                  machine=platform.machine(), threads=1, load=load, rows=rows)
    if max(before[0], load['after'][0]) > os.cpu_count(): report['note'] = NOTE
    if asked.out: asked.out.write_text(json.dumps(report, indent=1) + '\n')

if __name__ == '__main__': main()
