"Every command that takes a network takes a run, a file of one, packed or not, and a name of the package."
import io
import json
import shutil
from contextlib import redirect_stderr, redirect_stdout
from types import SimpleNamespace
import numpy as np
import pytest
import torch
from PIL import Image
from bnn_bn import commands as done
from bnn_bn.checkpoint import save_network
from bnn_bn.cli import bnn, commands, parser_for
from bnn_bn.deploy import load_packed
from bnn_bn.models import create_model
from bnn_bn.onebit.graph import read_bnn
from bnn_bn.onebit.unpack import compare_graphs
from bnn_bn.weights import card, pretrained_path

NAME = 'fashion-reactnet_mini'
TAKES = 'eval', 'pack', 'classify', 'export', 'deploy', 'bench'

def run(*words):
    "a command in this process: status and what it printed"
    out, err = io.StringIO(), io.StringIO()
    with redirect_stdout(out), redirect_stderr(err):
        try: bnn([str(w) for w in words])
        except SystemExit as e: code = e.code
        else: code = 0
    if isinstance(code, str): code, text = 1, err.getvalue() + code + '\n'
    else: text = err.getvalue()
    return SimpleNamespace(code=code or 0, out=out.getvalue(), err=text)

def good(*words):
    said = run(*words)
    assert said.code == 0, said.err
    return said.out

def one_line(said, *words):
    "a failure, in one line that has these words"
    assert said.code not in (0, None) and said.err.count('\n') == 1, said.err
    assert 'Traceback' not in said.err
    for w in words: assert w in said.err, said.err

def as_run(folder, file):
    "a folder as a training leaves it, with that file as its best network"
    folder.mkdir()
    shutil.copy(file, folder/f'best{file.suffix}')
    (folder/'config.json').write_text(json.dumps(dict(recipe=card(NAME).recipe)))
    return folder

@pytest.fixture(scope='module')
def given(tmp_path_factory):
    "one network as everything that a command can be given"
    home = tmp_path_factory.mktemp('given')
    packed, trained = home/'net.bnn', home/'net.safetensors'
    shutil.copy(pretrained_path(NAME), packed)
    model, info = create_model(packed), read_bnn(packed).info
    save_network(model, trained, **{k: v for k, v in info.items() if k not in ('config', 'latent')})
    shutil.copy(packed, home/'no_ending')
    kinds = dict(name=NAME, run=as_run(home/'run', trained), packed_run=as_run(home/'bits', packed),
                 of_run=home/'run/best.safetensors', trained=as_run(home/'two', trained)/'best.safetensors',
                 packed=home/'bits/best.bnn', no_ending=home/'no_ending')
    shutil.copy(home/'run/config.json', home/'config.json')
    for k in range(3):
        noise = torch.randint(256, (32, 32), generator=torch.Generator().manual_seed(k))
        Image.fromarray(noise.byte().numpy()).save(home/f'{k}.png')
    return kinds, home

KINDS = 'name', 'run', 'packed_run', 'of_run', 'trained', 'packed', 'no_ending'
PACKED = 'packed_run', 'packed', 'no_ending' # files that are packed

def the_same(graph):
    "to rounding of the real kernels, which unpacking has"
    return compare_graphs(graph, load_packed(NAME).graph) is not None

def of_pictures(packed):
    "what a file says of its pictures; numbers in float32, in which pictures are normalised"
    info = packed.info
    numbers = {k: np.float32(info[k]).tolist() for k in ('mean', 'std')}
    return dict(numbers, classes=info['classes'], size=info['size'])

def test_these_commands_take_a_network():
    "their first word is one; a new command has to be tried below, too"
    def first(name):
        places = [a for a in parser_for(name, name)._actions if not a.option_strings]
        return places[0].dest if places else None
    assert {n for n in commands if first(n) in ('run', 'file', 'source')} == set(TAKES)
    for name in TAKES: # and each can be told which network of a run
        assert [a for a in parser_for(name, name)._actions if a.dest == 'which']

def by_eval(word, home):
    said = good('eval', word, '--device', 'cpu', '--valid-images', '150')
    return said.partition(': ')[2]

def by_classify(word, home):
    lines = good('classify', word, home/'0.png', home/'1.png', home/'2.png', '--json', '--top', '3')
    return [json.loads(line)['classes'] for line in lines.splitlines()]

def by_export(word, home):
    pytest.importorskip('onnxruntime')
    from bnn_bn.export import run_onnx
    good('export', word, home/'out.onnx', '--force')
    x = torch.randn(2, 1, 32, 32, generator=torch.Generator().manual_seed(0)).numpy()
    return run_onnx(home/'out.onnx', x).round(3).tolist()

def by_deploy(word, home):
    shutil.rmtree(home/'site', ignore_errors=True)
    good('deploy', word, home/'site')
    packed = load_packed(home/'site/net.bnn')
    assert the_same(packed.graph)
    return of_pictures(packed)

def by_bench(word, home):
    "what its processes are given to read"
    seen = []
    def look(file, size, *rest):
        seen.append((load_packed(file), size, rest))
        return []
    with pytest.MonkeyPatch.context() as m:
        m.setattr(done, 'usual_rivals', look)
        said = good('bench', word, '--rounds', '1')
    (packed, size, rest), = seen
    assert the_same(packed.graph) and '32x32 pixels' in said
    return size, rest, of_pictures(packed)

def by_pack(word, home):
    good('pack', word, '--out', home/'again.bnn', '--images', '50', '--force')
    packed = load_packed(home/'again.bnn')
    assert the_same(packed.graph)
    return of_pictures(packed)

ANSWERS = dict(eval=by_eval, classify=by_classify, export=by_export, deploy=by_deploy, bench=by_bench,
               pack=by_pack)

@pytest.mark.parametrize('kind', KINDS[1:])
@pytest.mark.parametrize('name', TAKES)
def test_the_same_answer_for_every_kind(name, kind, given):
    kinds, home = given
    if name == 'pack' and kind in PACKED: # the one command and kind that does not go
        return one_line(run('pack', kinds[kind]), 'is packed already; eval, classify, export, deploy and bench')
    before = sorted(p.name for p in kinds['run'].iterdir())
    assert ANSWERS[name](kinds[kind], home) == ANSWERS[name](NAME, home)
    assert sorted(p.name for p in kinds['run'].iterdir()) == before # packed on the way, and not kept

def test_a_teacher_can_be_any_of_them(given):
    from bnn_bn.train.recipes import network_file
    from bnn_bn.train.teachers import load_teacher
    kinds, home = given
    shutil.copy(kinds['of_run'], kinds['run']/'model.safetensors') # the last network, which is the teacher
    x = torch.randn(2, 1, 32, 32, generator=torch.Generator().manual_seed(0))
    wanted = create_model(NAME, pretrained=True)(x)
    for kind in ('name', 'run', 'of_run', 'packed'):
        teacher = load_teacher(network_file(str(kinds[kind])), 10)
        torch.testing.assert_close(teacher.model(x), wanted, rtol=0, atol=1e-5)
        with pytest.raises(ValueError, match='10 classes, n_out=7'):
            load_teacher(network_file(str(kinds[kind])), 7)
    (kinds['run']/'model.safetensors').unlink()

def test_a_network_of_another_maker(tmp_path, monkeypatch):
    "what remove_bn made of it: packed on the way as well; a packed one cannot be measured, which is said"
    from test_hooks import converted
    monkeypatch.chdir(tmp_path)
    info = dict(classes=list('abcd'), mean=[.5]*3, std=[.2]*3, size=[64, 64])
    save_network(converted(), 'theirs.safetensors', **info)
    Image.new('RGB', (64, 64), (200, 9, 30)).save('p.png')
    said = good('classify', 'theirs.safetensors', 'p.png', '--top', '4')
    good('pack', 'theirs.safetensors', '--images', '20')
    assert good('classify', 'theirs.bnn', 'p.png', '--top', '4') == said
    one_line(run('eval', 'theirs.bnn', '--data', 'fashion'), 'theirs.bnn: ', 'no config',
             'take the network that it was packed from')
