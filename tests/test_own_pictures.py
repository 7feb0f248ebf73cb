"Own pictures from a folder to a label; plans, runs and what wrong words are told."
import json
import os
import shutil
import subprocess
import sys
from contextlib import redirect_stderr, redirect_stdout
from dataclasses import dataclass, replace
from io import StringIO
from pathlib import Path
import numpy as np
import pytest
import torch
from PIL import Image
from bnn_bn.checkpoint import load_info, load_model, save_network
from bnn_bn.cli import bnn
from bnn_bn.deploy import classify, load_packed
from bnn_bn.core.errors import DataError
from bnn_bn.images.inventory import read_pictures, take_inventory
from bnn_bn.images.pictures import Preparation
from bnn_bn.train.own import picture_dls, starting_weights
from bnn_bn.train.plan import plan_of
from bnn_bn.train.recipes import Recipe, make_dls, make_learner, make_recipe
from bnn_bn.train.resume import same_settings
from bnn_bn.train.run import evaluate, row_of, train
from bnn_bn.train.steps import rate_factor, rates_used, schedules

ROOT = Path(__file__).parent.parent
COLOURS = dict(red=(200, 30, 30), green=(30, 200, 30), blue=(30, 30, 200))

def paint(folder, classes=COLOURS, n=10, ending='png', seed=0):
    "a folder a class, with noisy pictures of its colour"
    rng = np.random.default_rng(seed)
    for name, colour in classes.items():
        (folder/name).mkdir(parents=True, exist_ok=True)
        for k in range(n):
            noise = rng.integers(-25, 26, (40, 36, 3))
            Image.fromarray((noise + colour).astype(np.uint8)).save(folder/name/f'{k}.{ending}')
    return folder

@pytest.fixture(scope='module')
def pictures(tmp_path_factory): return paint(tmp_path_factory.mktemp('own')/'paint')

SMALL = ('--size', '32', '--model', 'reactnet_mini', '--width', '.25', '--alpha', '.5',
         '--epochs', '6', '--bs', '6', '--lr', '.02', '--device', 'cpu', '--amp', 'none', '--compile', 'no')

@dataclass
class Said:
    "what a command printed, and its status"
    code:int
    out:str
    err:str

def run(*words):
    "a command in this process"
    out, err, code = StringIO(), StringIO(), 0
    with redirect_stdout(out), redirect_stderr(err):
        try: bnn([str(w) for w in words])
        except SystemExit as e:
            code = e.code if isinstance(e.code, int) else 1
            if isinstance(e.code, str): print(e.code, file=sys.stderr)
    return Said(code, out.getvalue(), err.getvalue())

def good(*words):
    said = run(*words)
    assert said.code == 0, said.err
    return said.out

@pytest.fixture(scope='module')
def trained(pictures, tmp_path_factory):
    "the folder of a run on them, and what was printed"
    out = tmp_path_factory.mktemp('runs')/'first'
    return out, good('train', 'folder', '--path', pictures, '--out', out, *SMALL)

# From a folder to a label

def test_the_command_says_what_it_found(trained, pictures):
    _, said = trained
    assert 'paint: 30 pictures (30 png) of 3 classes' in said
    assert '24 train and 6, held out by their names, validate' in said
    assert 'starts from random weights, as no trained ones fit' in said
    assert '1-bit weights and activations: 6 epochs of 4 batches' in said
    assert 'epoch 6: train_loss' in said and 'about 0 s left' in said

def test_it_learns_and_every_command_takes_it(trained, pictures, tmp_path):
    "eval repeats the figure, runs lists it, pack needs no data, classify names the colours"
    out, _ = trained
    result = json.loads((out/'result.json').read_text())
    assert result['best_accuracy'] > .6                                      # chance is 1/3
    measured = good('eval', out, '--path', pictures, '--device', 'cpu')
    assert f"top-1 {result['best_accuracy']:.2%}" in measured
    assert str(out) in good('runs', '--folder', out.parent)
    packed = tmp_path/'net.bnn'
    assert 'are not known' not in good('pack', out, '--out', packed, '--images', '20')
    assert load_packed(packed).info['classes'] == sorted(COLOURS)
    good('export', out, tmp_path/'net.onnx')
    lines = good('classify', packed, pictures/'red', '--json').splitlines()
    named = [json.loads(line)['classes'][0][0] for line in lines]
    net, dls = load_model(out/'best.safetensors'), picture_dls(pictures, 32, device='cpu')
    files = sorted((pictures/'red').iterdir())
    x = next(iter(dls.test_dl(files, bs=10)))[0]
    with torch.no_grad(): numbers = net.eval()(x).argmax(1)
    assert named == [dls.vocab[i] for i in numbers]

def test_other_classes_are_refused(trained, tmp_path):
    "as many, but of other names: their numbers mean something else"
    out, _ = trained
    other = paint(tmp_path/'other', dict(zip(('red', 'green', 'violet'), COLOURS.values())), 3)
    for words in (('eval', out, '--device', 'cpu'), ('pack', out, '--out', tmp_path/'x.bnn')):
        said = run(*words, '--path', other)
        assert said.code == 1 and 'violet' in said.err and said.err.count('\n') == 1

def figure(said): return said.split('top-1 ')[1].split(',')[0]

def test_a_named_folder_is_measured_as_it_was_trained(trained, pictures, tmp_path):
    "at the size of the training: as its recipe says, or its file where that lies alone"
    out, _ = trained
    alone = tmp_path/'alone.safetensors'
    shutil.copy(out/'best.safetensors', alone)
    words = '--path', pictures, '--device', 'cpu'
    measured = figure(good('eval', out, *words))
    assert measured == figure(good('eval', out, *words, '--data', 'folder'))
    assert measured[:3] != '33.'                                             # what chance comes to
    assert measured == figure(good('eval', alone, *words, '--data', 'folder'))

@pytest.mark.parametrize('other', [dict(mean=[.485, .456, .406]), dict(std=[.229, .224, .225]),
                                   dict(mean='x'), dict(size=[32, 48]), dict(size=None)])
def test_other_pictures_than_those_of_the_training_are_not_measured(other, trained, pictures, tmp_path):
    "a network whose file says another normalisation or shape is refused by that word"
    out, _ = trained
    file, info = tmp_path/'net.safetensors', load_info(out/'best.safetensors')['info']
    save_network(load_model(out/'best.safetensors'), file, **info | other)
    said = run('eval', file, '--path', pictures, '--data', 'folder', '--device', 'cpu')
    assert said.code == 1 and next(iter(other)) in said.err and said.err.count('\n') == 1, said

@pytest.mark.parametrize('some,words', [(('--holdout', '96'), 'on 96 held-out training images'),
                                        (('--valid-images', '50'), 'on 50 validation images')])
def test_what_a_recorded_figure_is_of(some, words, tmp_path):
    "of the images that validated, where these were not all"
    few = '--images', '128', '--width', '.125', '--epochs', '1', '--amp', 'none', '--compile', 'no'
    good('train', 'fashion', *few, *some, '--device', 'cpu', '--out', tmp_path/'run')
    said = good('eval', tmp_path/'run', '--device', 'cpu')
    assert 'on 2000 images; recorded' in said and said.rstrip().endswith(words)

def test_weights_of_the_package_where_they_fit(pictures):
    r = make_recipe('folder', size=32, bs=8)
    learn = make_learner(r, picture_dls(pictures, 32, 8, device='cpu'))
    assert learn.began_from.name == 'cifar10-reactnet18-w50'
    assert learn.model.n_out == 3 and not hasattr(learn, 'calibrated_start')
    other = make_learner(replace(r, width=.125), learn.dls)
    assert not other.began_from.name and hasattr(other, 'calibrated_start')

def test_any_dataloaders_of_fastai(pictures, tmp_path):
    "a training on the user's own; the file keeps how pictures are made, so packing needs none"
    from fastai.vision.all import ImageDataLoaders, Resize
    dls = ImageDataLoaders.from_folder(pictures, valid_pct=.2, seed=0, item_tfms=Resize(32), bs=8,
                                       device='cpu', num_workers=0)
    r = make_recipe('folder', model='reactnet_mini', width=.25, epochs=1, lr=.02)
    with redirect_stdout(StringIO()):
        result = train(r, tmp_path/'run', dls=dls, device='cpu', amp='none', compiled='no')
    assert result['recipe']['data'] == 'own'
    info = load_info(tmp_path/'run/best.safetensors')['info']
    assert (info['classes'], info['size']) == (sorted(COLOURS), [32, 32])
    good('pack', tmp_path/'run', '--images', '10')
    net = load_packed(tmp_path/'run/best.bnn')
    file = pictures/'green/0.png'
    assert classify(net, file)[0][0][0] in COLOURS
    model = load_model(tmp_path/'run/best.safetensors')
    assert evaluate(model, dls.valid)['top1'] == pytest.approx(result['best_accuracy'])
    said = run('eval', tmp_path/'run', '--device', 'cpu')
    assert said.code == 1 and 'DataLoaders that its user made' in said.err
    with pytest.raises(ValueError, match='images: works on the data of a recipe'):
        train(r, tmp_path/'again', dls=dls, images=5)

# What lies in a folder

@pytest.mark.parametrize('part', ['valid', 'val', 'Validation', 'test'])
def test_a_part_for_validation(part, tmp_path):
    paint(tmp_path/'train', n=3)
    paint(tmp_path/part, n=2, ending='jpg')
    found = take_inventory(tmp_path)
    assert (len(found.files('train')), len(found.files('valid')), found.part) == (9, 6, part)
    assert {f.parent.parent.name for f, _ in found.files('valid')} == {part}

def test_what_is_held_out_depends_on_names_alone(pictures, tmp_path):
    "another folder, another seed, pictures of another date: the same are held out"
    import shutil
    shutil.copytree(pictures, tmp_path/'moved')
    def held(folder):
        return {f.relative_to(folder) for f, _ in take_inventory(folder).files('valid')}
    assert held(tmp_path/'moved') == held(pictures)
    all_files = take_inventory(pictures)
    assert not {f for f, _ in all_files.files('train')} & {f for f, _ in all_files.files('valid')}

def test_links_hidden_files_and_unicode(tmp_path):
    folder = paint(tmp_path/'d', {'caf\u00e9': (9, 99, 30), '\u732b': (99, 30, 9)}, 4)
    (folder/'\u732b/round').symlink_to(folder)
    (folder/'.cache').mkdir()
    (folder/'caf\u00e9/._0.png').write_bytes(b'x'*99)
    found = take_inventory(folder)
    assert len(found.files('train')) + len(found.files('valid')) >= 8
    assert '._0.png' in [f.name for f in found.odd] and '.cache' not in found.classes

def test_one_name_in_two_forms_is_one_class(tmp_path):
    "\u00e9 as one sign, and as e with an accent: two folders that look alike"
    paint(tmp_path, {'caf\u00e9': (9, 99, 30), 'cafe\u0301': (9, 99, 30), 'bar': (99, 30, 9)}, 4)
    found = take_inventory(tmp_path)
    assert sorted(found.classes) == ['bar', 'caf\u00e9']
    assert len(found.files('train')) + len(found.files('valid')) == len(list(tmp_path.rglob('*.png'))) == 12

@pytest.mark.parametrize('twice', ['Train', 'Valid'])
def test_a_part_that_is_there_twice_is_refused(twice, tmp_path):
    for part in {'train', 'valid', twice}: paint(tmp_path/part, n=2)
    with pytest.raises(DataError, match=f'{twice} and .*{twice.lower()}: one part'): take_inventory(tmp_path)

def test_classes_may_have_names_of_parts(tmp_path):
    paint(tmp_path, {name: (9, 99, 30) for name in ('Test', 'test', 'Train')}, 3)
    assert take_inventory(tmp_path).classes == ['Test', 'Train', 'test']

@pytest.mark.parametrize('share', [.07, .14, .28, .29, .57, .58]) # times 100, some are below a whole number
def test_a_share_of_broken_pictures_is_counted_as_written(share, tmp_path):
    n = round(100*share)
    (tmp_path/'bad.png').write_bytes(b'x')
    Image.new('RGB', (8, 8)).save(tmp_path/'good.png')
    def read(bad):
        files = [tmp_path/'good.png']*(100 - bad) + [tmp_path/'bad.png']*bad
        return read_pictures(files, Preparation((8, 8)), share)[1]
    assert len(read(n)) == n
    with pytest.raises(DataError, match=f'and {n} may be left out'): read(n + 1)

def test_where_the_held_out_picture_is_broken_the_next_is_held_out(tmp_path):
    paint(tmp_path, n=5)
    held, = take_inventory(tmp_path).valid['red']
    held.write_bytes(b'<html>')
    dls = picture_dls(tmp_path, 32, 4, skip_bad=1, device='cpu')
    found = dls.inventory
    assert (len(found.train['red']), len(found.valid['red']), found.bad) == (3, 1, [held])
    for (f, k), x, y in zip(found.files('valid'), dls.valid.x, dls.valid.y):
        assert torch.equal(x, torch.from_numpy(Preparation((32, 32))(f)).permute(2, 0, 1)) and k == y
    for f in (tmp_path/'red').iterdir(): f.write_bytes(b'<html>')
    with pytest.raises(DataError, match='of the class red, no picture that is to train can be read'):
        picture_dls(tmp_path, 32, 4, skip_bad=5, device='cpu')

def test_a_part_without_a_good_picture_is_named(tmp_path):
    for part in ('train', 'valid'): paint(tmp_path/part, n=3)
    for f in (tmp_path/'valid/red').iterdir(): f.write_bytes(b'<html>')
    with pytest.raises(DataError, match='no picture that is to validate can be read'):
        picture_dls(tmp_path, 32, 4, skip_bad=3, device='cpu')

CARD = dict(backbone='reactnet18', norm='nobn', binary='both', width=.5, stem='cifar', alpha=.25, gamma=1.1547,
            rules='default')

@pytest.mark.parametrize('other', [dict(shortcut='real'), dict(quantizer='ste'), dict(act='prelu'), dict(stem_bits=8),
                                   dict(block='react'), dict(binary='act'), dict(alpha=.2)], ids=str)
def test_weights_of_another_network_do_not_start_one(other):
    assert starting_weights(CARD, 64).name == 'cifar10-reactnet18-w50'
    assert starting_weights(CARD | dict(n_out=3, stem_bits=None), 64).name == 'cifar10-reactnet18-w50'
    start = starting_weights(CARD | other, 64)
    assert not start.name and next(iter(other)) + '=' in start.why

def test_what_a_network_does_not_say_is_the_default():
    "the weights have alpha=.25, a network that says nothing has .2"
    start = starting_weights({k: v for k, v in CARD.items() if k != 'alpha'}, 64)
    assert not start.name and 'alpha=0.25, not 0.2' in start.why

def damage(folder, n):
    for k in range(n): (folder/f'red/broken{k}.jpg').write_bytes(b'<html>')

@pytest.mark.parametrize('bad,skip,passes', [
    (0, 0, True), (1, 0, False), (2, 1, False), (2, 2, True), (2, .1, True), (2, .05, False)])
def test_broken_pictures(bad, skip, passes, tmp_path):
    "as many as were allowed are left out and counted; one more is refused with its name"
    folder = paint(tmp_path/'d', n=8)
    damage(folder, bad)
    if not passes:
        with pytest.raises(ValueError, match='broken0.jpg.*skip_bad'):
            picture_dls(folder, 32, 8, skip_bad=skip, device='cpu')
        return
    dls = picture_dls(folder, 32, 8, skip_bad=skip, device='cpu')
    assert len(dls.train.x) + len(dls.valid.x) == 24
    assert f'{bad} broken pictures' in str(dls.inventory) or not bad

def test_the_command_names_broken_pictures(tmp_path):
    damage(paint(tmp_path/'d', n=5), 1)
    said = run('train', 'folder', '--path', tmp_path/'d', '--out', tmp_path/'run', *SMALL)
    assert said.code == 1 and 'broken0.jpg' in said.err and '--skip-bad 1' in said.err
    assert said.err.count('\n') == 1 and not (tmp_path/'run').exists()

def test_few_pictures(tmp_path):
    "two of a class are enough; a batch has what there is"
    dls = picture_dls(paint(tmp_path/'d', n=2), 32, 64, device='cpu')
    assert (len(dls.train), dls.train.bs, len(dls.valid.x)) == (1, 3, 3)

# Plans

def test_a_dry_run_writes_nothing(pictures, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    said = good('train', 'folder', '--path', pictures, '--dry-run', *SMALL)
    assert '6 epochs, each of 4 batches (24 optimizer steps in all)' in said
    assert 'hours' in said and 'MB of disk' in said and 'nothing was written' in said
    assert list(tmp_path.iterdir()) == []

def test_a_plan_knows_the_disk(trained, pictures):
    "within a tenth of the networks and states of the run; tables and a picture come on top"
    out, _ = trained
    config = json.loads((out/'config.json').read_text())
    r = Recipe(**config['recipe'])
    plan = plan_of(r, make_dls(r, pictures, 'cpu'), timed=1)
    size = sum(f.stat().st_size for f in out.glob('*.safetensors'))
    assert plan.bytes == pytest.approx(size, rel=.1)

def test_some_validation_images(trained, pictures):
    out, _ = trained
    said = good('eval', out, '--path', pictures, '--device', 'cpu', '--valid-images', '4')
    assert 'on 4 images' in said
    r = make_recipe('fashion')
    a, b = (make_dls(r, device='cpu', images=128, valid_images=200).valid for _ in 'ab')
    assert torch.equal(a.x, b.x) and len(set(a.y.tolist())) == 10

# Rates

@pytest.mark.parametrize('schedule', schedules)
@pytest.mark.parametrize('epochs,batches', [(1, 1), (1, 2), (2, 1), (1, 30), (3, 40)])
def test_no_training_at_rate_zero(schedule, epochs, batches):
    assert rates_used(schedule, 1., epochs, batches)['greatest'] > .2

def test_rates_are_those_that_the_optimizer_had(pictures):
    from fastai.basics import Callback
    seen = []
    class Look(Callback):
        order = 70
        def before_batch(self):
            if self.training: seen.append(self.opt.hypers[-1]['lr'])
    r = make_recipe('folder', model='reactnet_mini', width=.125, start='')
    learn = make_learner(r, picture_dls(pictures, 32, 4, device='cpu'), cbs=[Look()])
    with learn.no_bar(), learn.no_logging(): learn.fit_step(4, .01, 'cosine')
    expected = rates_used('cosine', .01, 4, 6)
    assert (seen[0], max(seen), seen[-1]) == tuple(expected.values())
    assert seen == [.01*rate_factor('cosine', k//6, 4, k % 6, 6) for k in range(24)]

def test_the_rate_is_in_the_result(trained):
    out, _ = trained
    result = json.loads((out/'result.json').read_text())
    assert result['rates'] == rates_used('cosine', .02, 6, 4)

# Runs

def test_the_demo_is_a_run(tmp_path, monkeypatch):
    "eval, runs, pack, classify and export take its folder; it is not made again over what is there"
    monkeypatch.chdir(tmp_path)
    words = 'demo', '--only', 'nobn', '--epochs', '1', '--images', '256'
    good(*words)
    accuracy = json.loads(Path('runs/demo/result.json').read_text())['accuracy']
    assert f'top-1 {accuracy:.2%}' in good('eval', 'runs/demo', '--device', 'cpu')
    assert f'{accuracy:6.1%} best' in good('runs')
    good('pack', 'runs/demo', '--images', '20', '--out', 'demo.bnn')
    good('export', 'runs/demo', 'demo.onnx')
    Image.new('L', (30, 40), 90).save('x.png')
    assert good('classify', 'demo.bnn', 'x.png').startswith('x.png: ')
    again = run(*words)
    assert again.code == 1 and '--force' in again.err

def test_runs_that_began_before_go_on(pictures):
    "the fields of own pictures stand in the settings of such runs only"
    old = json.loads(json.dumps(row_of(make_recipe('fashion'))))
    assert not {'size', 'valid', 'skip_bad'} & set(old)
    same_settings(old, row_of(make_recipe('fashion')), 'config.json')
    assert row_of(make_recipe('folder', valid=.3))['valid'] == .3

# Wrong words

# what follows on `train folder`, with pictures that are there; each is wrong in one thing
FIRST_TRY = {
    ('--teacher', 'nothing.safetensors'): 'nothing.safetensors',
    ('--save-steps', '0'): '--save-steps 0',
    ('--threads', '-1'): '--threads -1: at least 1',
    ('--images', '3'): '--images 3: from the batch size',
    ('--device', 'cuda:77'): '--device cuda:77: this machine has',
    ('--valid-images', '99'): '--valid-images 99'}
WRONG = {
    **{('train', 'folder', '--path', 'PICTURES', *SMALL, *k): v for k, v in FIRST_TRY.items()},
    ('train', 'fashion', '--device', 'cuda:77'): '--device cuda:77: this machine has',
    ('train', 'fashion', '--device', 'gpu'): '--device gpu: cpu, cuda',
    ('train', 'fashion', '--bs', '0'): '--bs 0: a whole number from 1 on',
    ('train', 'fashion', '--bs', '20000'): '--bs 20000: from 1 to 10000',
    ('train', 'fashion', '--bs', 'many'): "--bs: invalid int value: 'many'",
    ('train', 'fashion', '--lr', 'nan'): '--lr nan: a finite number above 0',
    ('train', 'fashion', '--images', '8'): '--images 8: from the batch size 128',
    ('train', 'fashion', '--seed', '-1'): '--seed -1: a whole number from 0',
    ('train', 'fashion', '--size', '32'): '--size 32: for own pictures only',
    ('train', 'folder'): 'give the directory of the data with --path',
    ('train', 'folder', '--path', 'nowhere'): 'nowhere: no such folder',
    ('train', 'folder', '--valid', '1.5'): '--valid 1.5: below 1',
    ('train', 'folder', '--skip-bad', '-1'): '--skip-bad -1',
    ('train', 'folder', '--size', '50'): '--size 50: image side 50',
    ('eval', 'fashion-reactnet_mini', '--bs', '0'): '--bs 0: at least 1',
    ('eval', 'fashion-reactnet_mini', '--device', 'cuda:77'): '--device cuda:77',
    ('eval', 'fashion-reactnet_mini', '--data', 'mnist'): '--data mnist: allowed',
    ('eval', '.'): 'no run',
    ('pack', '.'): 'no run',
    ('pack', 'fashion-reactnet_mini', '--images', '0'): '--images 0: at least 1',
    ('bench', 'fashion-reactnet_mini', '--batch', '0'): '--batch 0: at least 1',
    ('bench', 'fashion-reactnet_mini', '--threads', '-1'): '--threads -1: at least 1',
    ('demo', '--epochs', '0'): '--epochs 0: at least 1',
    ('demo', '--lr', '-1'): '--lr -1.0: a finite number above 0',
    ('runs', '--folder', 'nowhere'): 'nowhere: no such folder'}

@pytest.mark.parametrize('words', WRONG, ids=' '.join)
def test_wrong_words(words, pictures, tmp_path, monkeypatch):
    "one line, in the command's own words, a status that is not zero, and nothing is written"
    monkeypatch.chdir(tmp_path)
    said = run(*(pictures if w == 'PICTURES' else w for w in words))
    assert said.code != 0 and WRONG[words] in said.err, said.err
    assert said.err.count('\n') == 1 and 'Traceback' not in said.err
    assert list(tmp_path.iterdir()) == []

def test_debug_shows_the_traceback(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    tries = ('train', 'fashion', '--bs', '0'), ('eval', '.'), ('classify', 'no.bnn', 'x.png')
    for words in tries:
        assert 'Traceback' in run(*words, '--debug').err

def test_other_folders_and_files_stay(trained, pictures, tmp_path):
    "no command writes over a file, or among those of something else, unless it is told to"
    out, _ = trained
    said = run('train', 'folder', '--path', pictures, '--out', out, *SMALL)
    assert said.code == 1 and '--resume' in said.err and '--force' in said.err
    (tmp_path/'model.safetensors').write_text('mine')
    said = run('train', 'folder', '--path', pictures, '--out', tmp_path, *SMALL)
    assert said.code == 1 and 'model.safetensors' in said.err
    assert (tmp_path/'model.safetensors').read_text() == 'mine'
    (tmp_path/'net.bnn').write_text('mine')
    said = run('pack', out, '--out', tmp_path/'net.bnn')
    assert said.code == 1 and '--force' in said.err and (tmp_path/'net.bnn').read_text() == 'mine'
    good('pack', out, '--out', tmp_path/'net.bnn', '--force', '--images', '10')
    said = run('eval', out.parent)
    assert said.code == 1 and f'give one of them: {out}' in said.err

def test_in_a_process_of_its_own(tmp_path):
    "what a shell sees: a status, one line, no traceback"
    env = dict(os.environ, PYTHONPATH=str(ROOT), OMP_NUM_THREADS='1', PYTHONWARNINGS='ignore')
    words = [sys.executable, '-m', 'bnn_bn', 'train', 'folder', '--path', str(tmp_path)]
    done = subprocess.run(words, capture_output=True, text=True, env=env, cwd=tmp_path)
    assert done.returncode == 1 and '0 class folders' in done.stderr
    assert done.stderr.count('\n') == 1

def test_a_run_warns_of_nothing(pictures, tmp_path):
    "neither fastai nor torch has a word to say about how the package uses them"
    import warnings
    words = 'train', 'folder', '--path', pictures, '--out', tmp_path/'run', *SMALL, '--epochs', '1'
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter('always')
        good(*words)
    assert [f'{w.category.__name__}: {w.message}' for w in caught] == []
