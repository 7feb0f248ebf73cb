"bench/gpu.py without a GPU: its options, the authors' form beside ours, and all pieces, small."
import json, os, subprocess, sys
from pathlib import Path
import pytest, torch, torch.nn.functional as F
from benches import load_bench
from bnn_bn.agc import adaptive_clip_grad, clipped_parameters
from bnn_bn.models import reactnet_nobn

ROOT = Path(__file__).parent.parent
SCRIPT = ROOT/'bench/gpu.py'
ENV = dict(os.environ, OMP_NUM_THREADS='1', PYTHONWARNINGS='ignore', CUDA_VISIBLE_DEVICES='')

def call(*words):
    command = [sys.executable, str(SCRIPT), *map(str, words)]
    return subprocess.run(command, env=ENV, capture_output=True, text=True)

def refused(script, monkeypatch, *words):
    "what the command says when it ends at once"
    monkeypatch.setattr(sys, 'argv', ['gpu.py', *map(str, words)])
    monkeypatch.setattr(torch.cuda, 'is_available', lambda: False)
    with pytest.raises(SystemExit) as error: script.main()
    return error.value.code

def test_options(tmp_path, monkeypatch, capsys):
    script = load_bench('gpu')
    assert refused(script, monkeypatch, '--help') == 0
    assert 'has run to its end on a GPU' in capsys.readouterr().out
    wrong = ((['--only', 'speed'], 'torch sees no GPU'), (['--device', 'cpu'], '--path'),
             (['--device', 'cpu', '--quick', '--seconds', 0], '--seconds 0'))
    for words, said in wrong: assert said in refused(script, monkeypatch, '--out', tmp_path, *words)
    other = dict(settings=dict(device='cuda', quick=False))
    (tmp_path/'equal.json').write_text(json.dumps(other))
    words = '--device', 'cpu', '--quick', '--only', 'equal', '--out', tmp_path
    assert 'choose another --out' in refused(script, monkeypatch, *words)

def test_authors_form():
    "in float64 its logits, gradients and clipped gradients are ours under the reference rules"
    script, make = load_bench('gpu'), dict(n_out=10, stem='cifar', width=.125, rules='reference')
    torch.manual_seed(0)
    ours, theirs = (reactnet_nobn('18', **make).double() for _ in range(2))
    with torch.no_grad():
        for p in ours.parameters():                             # gains and shifts too
            if p.dim() < 4 or p[0].numel() == 1: p.add_(torch.randn_like(p), alpha=.1)
    theirs.load_state_dict(ours.state_dict())
    script.authors_form(theirs)
    kinds = {type(m).__name__ for m in theirs.modules()}
    assert {'AuthorsSign', 'AuthorsRPReLU', 'AuthorsConv', 'AuthorsBlock'} <= kinds

    x, y = torch.randn(4, 3, 32, 32, dtype=torch.float64), torch.arange(4)
    logits = [net(x) for net in (ours, theirs)]
    torch.testing.assert_close(*logits, rtol=1e-9, atol=1e-9)
    for out in logits: F.cross_entropy(out, y).backward()
    same_gradients(ours, theirs)
    adaptive_clip_grad(clipped_parameters(ours), .02)
    script.authors_clip(clipped_parameters(theirs))
    same_gradients(ours, theirs)

def same_gradients(ours, theirs):
    for (name, p), q in zip(ours.named_parameters(), theirs.parameters(), strict=True):
        torch.testing.assert_close(p.grad, q.grad, rtol=1e-7, atol=1e-10, msg=name)

def test_quick(tmp_path):
    "all pieces, small, on the CPU; the time is up after the first call, and the second ends it"
    words = ['--device', 'cpu', '--quick', '--out', tmp_path]
    first = call(*words, '--seconds', 1)
    assert first.returncode == 0, first.stderr[-2000:]
    assert 'the same command goes on' in first.stdout
    done = call(*words)
    assert done.returncode == 0, done.stderr[-2000:]
    assert 'nothing left' in done.stdout
    read = lambda name: json.loads((tmp_path/f'{name}.json').read_text())
    wanted = dict(passed=True, cuda_cells=1, error='', seconds=0)
    assert read('cells')['02b_augment'] | dict(seconds=0) == wanted
    assert read('equal')['passed'] and read('equal')['gaps']['device to cpu']['logits'] == 0
    rows = read('speed')
    assert all(rows[k]['images_per_s'] > 0 for k in ('authors', 'float32', 'bf16'))
    assert rows['authors']['times_the_authors'] == 1
    assert read('ours')['accuracy'] > 0 and read('published')['goal'] == .9208
