"Scripts of bench/ that train: stopped ones save, and no result is taken for one of other options."
import json, os, random, shutil, signal, subprocess, sys, time
from types import SimpleNamespace
import pytest, torch
from benches import BENCH, load_bench
from bnn_bn.data import tensor_dls

ROOT = BENCH.parent
trainings = load_bench('trainings')

# Stopped ------------------------------------------------------------------------------------------

SAVES = '''
import signal, sys, time
from pathlib import Path
folder, stopped = Path(sys.argv[1]), []
for s in (signal.SIGINT, signal.SIGTERM): signal.signal(s, lambda *_: stopped.append(1))
(folder/'began').write_text('')
while not stopped: time.sleep(.01)
time.sleep(1) # a state takes its time
(folder/'saved').write_text('')
sys.exit(130)
'''
SCRIPT = '''
import signal, sys
sys.path.insert(0, {bench!r})
signal.signal(signal.SIGINT, signal.default_int_handler)
import trainings
trainings.stop_on_term()
trainings.run([sys.executable, '-c', {program!r}, {folder!r}])
'''

def waited_for(file, process):
    while not file.exists():
        assert process.poll() is None, 'it ended before'
        time.sleep(.02)

@pytest.mark.parametrize('how', (signal.SIGINT, signal.SIGTERM))
def test_a_training_saves_when_its_script_is_stopped(how, tmp_path):
    "Ctrl-C, which a terminal sends to both, and a TERM for the script alone"
    words = dict(bench=str(BENCH), program=SAVES, folder=str(tmp_path))
    script = subprocess.Popen([sys.executable, '-c', SCRIPT.format(**words)], start_new_session=True,
                              stderr=subprocess.DEVNULL)
    waited_for(tmp_path/'began', script)
    if how == signal.SIGINT: os.killpg(script.pid, how)
    else: script.send_signal(how)
    assert script.wait(60) != 0 and (tmp_path/'saved').exists()

def test_no_script_kills_its_trainings():
    "subprocess.run does so a quarter of a second after Ctrl-C"
    for name in ('columns', 'late', 'parallel'):
        text = (BENCH/f'{name}.py').read_text()
        assert 'trainings.stop_on_term()' in text and 'subprocess.run' not in text, name

# Finished -----------------------------------------------------------------------------------------

KEPT = ROOT/'results/cifar10_quarter/bn-1.json'
WORDS = 'cifar10-plus --width .25 --epochs 8 --bs 125 --compile yes'.split()

@pytest.fixture
def runs(tmp_path):
    "a folder of runs, of which one has ended"
    (tmp_path/'bn-1').mkdir()
    shutil.copy(KEPT, tmp_path/'bn-1/result.json')
    shutil.copy(KEPT.with_suffix('.csv'), tmp_path/'bn-1/history.csv')
    return tmp_path

SAME = [], ['--threads', '2'], ['--path', 'elsewhere', '--resume', '--no-download'], ['--save-steps', '9']
OTHER = {'lr': ['--lr', '.008'], 'epochs': ['--epochs', '9'], 'start': ['--start', ''],
         'images': ['--images', '100'], 'norm': ['--norm', 'naive'], 'amp': ['--amp', 'none'],
         'valid_images': ['--valid-images', '50'], 'teacher': ['--teacher', 'runs/big']}

def test_a_finished_training_is_known_by_its_options(runs):
    "whatever else is said of place and machine"
    own = [*WORDS, '--norm', 'bn', '--seed', 1]
    for more in SAME: assert trainings.is_done(runs/'bn-1', [*own, *more])
    assert not trainings.is_done(runs/'bn-2', own)
    for k, more in OTHER.items():
        with pytest.raises(SystemExit, match=f'{k} .* there, .* now.*another --runs'):
            trainings.is_done(runs/'bn-1', [*own, *more])

def test_columns_copies_no_result_of_other_options(runs, monkeypatch):
    columns, begun = load_bench('columns'), []
    monkeypatch.setattr(columns.trainings, 'run', begun.append)
    monkeypatch.setattr(columns.trainings, 'stop_on_term', lambda: None)
    (runs/'bn-1').rename(runs/'bn-0')
    def main(*words):
        folders = ['--out', str(runs/'out'), '--runs', str(runs), '--seeds', '1', '--norms', 'bn']
        monkeypatch.setattr(sys, 'argv', ['columns.py', *folders, '--', *WORDS, *words])
        columns.main()
    with pytest.raises(SystemExit, match='lr'): main('--lr', '.008')
    with pytest.raises(SystemExit, match='seed 1 there, 0 now'): main()
    assert not list((runs/'out').iterdir()) and not begun

def test_a_line_that_was_changed_is_refused(runs, tmp_path):
    parallel = load_bench('parallel')
    (tmp_path/'out').mkdir()
    options = SimpleNamespace(runs=runs, out=tmp_path/'out', path=None, jobs=1)
    def look(*more):
        return parallel.look_after([parallel.Job('bn-1', [*WORDS, '--norm', 'bn', '--seed', '1', *more])], options)
    with pytest.raises(SystemExit, match='epochs 8 there, 20 now'): look('--epochs', '20')
    assert not list(options.out.iterdir())
    assert look() == [] and len(list(options.out.iterdir())) == 2

def test_ablations_of_two_sizes_are_not_mixed(tmp_path):
    ablate = load_bench('ablate')
    row = {'without': 'all', 'lr': .002, 'seed': 0, 'images': 4000, 'epochs': 8}
    (tmp_path/'a.json').write_text(json.dumps(dict(rows=[row])))
    def read(**size): return ablate.read_result(SimpleNamespace(out=tmp_path/'a.json', **size))
    assert read(images=4000, epochs=4)['rows'] == [row]
    for size in (dict(images=400, epochs=4), dict(images=4000, epochs=2)):
        with pytest.raises(SystemExit, match='another --out'): read(**size)

def test_statistics_are_counted_on_the_same_images(monkeypatch, tmp_path):
    "for each run, in each call"
    bench, seen = load_bench('bn_statistics'), []
    (tmp_path/'config.json').write_text(json.dumps(dict(seed=0, recipe=dict(lr=.1))))
    new = dict(load_network=lambda file: torch.nn.Identity(), accuracy=lambda model, dl: 0., BATCHES=1,
               update_bn=lambda batches, model: seen.extend(batches))
    for name, value in new.items(): monkeypatch.setattr(bench, name, value)
    x, y = torch.arange(64, dtype=torch.uint8)[:, None, None, None].expand(64, 1, 2, 2), torch.arange(64)
    for first in (1, 2): # a process draws the loaders' own seed by chance
        random.seed(first)
        dls = tensor_dls(x, y, x, y, bs=8, device='cpu', mean=[0.], std=[1.])
        for _ in range(2): bench.row_of(tmp_path, dls)
    assert len(seen) == 4 and all(torch.equal(s, seen[0]) for s in seen)

def test_each_comparison_has_a_row_of_its_own():
    "three networks of a run, runs of one name, and other numbers of images"
    agree = load_bench('agree')
    files = 'a/nobn-0/best', 'a/nobn-0/model', 'a/nobn-1/best', 'b/nobn-0/best'
    names = [agree.name_of(f'runs/{f}.safetensors', *n) for f in files for n in ((100, 10), (100, 100), (200, 10))]
    assert len(set(names)) == len(names)
    assert agree.name_of('runs/a/nobn-0/best.safetensors', 100, 10) == names[0]
