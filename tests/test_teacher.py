"A tiny real network teaches a tiny binary one; its own training resumes exactly."
import json
from dataclasses import replace
import pytest, torch
from fastai.basics import set_seed
import fastai.callback.progress # noqa: F401, Learner.no_bar
from bnn_bn.checkpoint import load_network, save_network
from bnn_bn.deploy import pack
from bnn_bn.models import binary_net
from bnn_bn.others.realnet import RealNet, real_nets
from bnn_bn.train.recipes import make_dls, make_learner, make_model, make_recipe, network_file
from bnn_bn.train.resume import Interrupted
from bnn_bn.train.run import bnn_eval, bnn_train
from bnn_bn.train.teachers import load_teacher
from test_training import StopAfter

SMALL = '--device cpu --images 256 --bs 64 --width .125 --epochs 2'.split()

def test_teacher_and_pupil(tmp_path, capsys):
    "bnn_train makes a teacher, and takes its folder or its file for a pupil"
    teacher, pupil = tmp_path/'teacher', tmp_path/'pupil'
    bnn_train(['fashion', '--model', 'resnet9', '--norm', 'bn', *SMALL, '--out', str(teacher)])
    assert 'step 1 (real-valued)' in capsys.readouterr().out
    result = json.loads((teacher/'result.json').read_text())
    assert result['steps'][0]['binary'] == 'real'
    file = teacher/'model.safetensors'
    assert isinstance(load_network(file), RealNet)

    taught = lambda by, out, *more: bnn_train(
        ['fashion', *SMALL, *more, '--teacher', str(by), '--out', str(out)])
    taught(teacher, pupil, '--amp', 'bf16')
    config = json.loads((pupil/'config.json').read_text())
    assert config['recipe']['teacher'] == str(teacher)
    weights = load_network(pupil/'model.safetensors').state_dict()
    taught(file, tmp_path/'again', '--amp', 'bf16')
    again = load_network(tmp_path/'again/model.safetensors').state_dict()
    assert all(torch.equal(weights[k], again[k]) for k in weights)
    taught('none', tmp_path/'alone', '--amp', 'bf16')
    alone = load_network(tmp_path/'alone/model.safetensors').state_dict()
    assert not all(torch.equal(weights[k], alone[k]) for k in weights)

    bnn_eval(str(teacher), which='model', device='cpu')
    assert f"recorded {result['accuracy']:.2%}" in capsys.readouterr().out

def test_wrong_teachers(tmp_path):
    "a run that has not ended, and a real network that is asked to be BN-free"
    wrong = ((['--teacher', str(tmp_path)], 'no model.safetensors in it'),
             (['--model', 'resnet9'], '--norm nobn: resnet9 is a real network'))
    for words, said in wrong:
        words = ['fashion', *SMALL, *words, '--out', str(tmp_path/'run')]
        with pytest.raises(SystemExit, match=said): bnn_train(words)

def test_same_pictures(tmp_path):
    "the teacher sees the batch that the pupil sees, small pictures and all"
    r = make_recipe('fashion', sizes='16', bs=32, width=.125, start='')
    teacher = make_model(replace(r, model='resnet9'), 10, 1)
    file = save_network(teacher, tmp_path/'teacher.safetensors')
    learn = make_learner(replace(r, teacher=str(file)), make_dls(r, device='cpu', images=64))
    seen = {m: [] for m in (learn.model, learn.distill.teacher.model)}
    for m in seen: m.register_forward_pre_hook(lambda m, args: seen[m].append(args[0].clone()))
    with learn.no_bar(), learn.no_logging(): learn.fit_step(1, .01)
    by_pupil, by_teacher = ([x for x in xs if x.shape == (32, 1, 16, 16)] for xs in seen.values())
    assert len(by_pupil) == len(by_teacher) == 2                # batches of the one epoch
    for x, y in zip(by_pupil, by_teacher): assert torch.equal(x, y)

def known(file, **info):
    "a file of a small network, which says what it knows of its pictures"
    return str(save_network(binary_net('reactnet_mini', width=.125, n_out=10, in_chans=1), file, **info))

def numbers(t): return None if t is None else t.flatten().tolist()

@pytest.mark.parametrize('info,given,size,mean', [
    (dict(size=[32, 32], mean=[.25], std=[.5]), {}, 32, [.25]),
    (dict(size=[32, 32], mean=[.25], std=[.5]), dict(size=48, mean=.5, std=1), 48, [.5]),
    (dict(size=[32, 48]), {}, None, None), ({}, {}, None, None)], ids=str)
def test_a_teacher_of_ours_sees_what_it_was_trained_on(info, given, size, mean, tmp_path):
    "as its file says, trained or packed; what the user gives comes first"
    file = known(tmp_path/'net.safetensors', **info)
    packed = tmp_path/'net.bnn'
    pack(load_network(file), **info).save(packed)
    for source in (file, str(packed)):
        teacher = load_teacher(source, 10, **given)
        assert teacher.size == size and numbers(teacher.mean) == mean

def test_a_teacher_of_the_package_knows_its_pictures():
    teacher = load_teacher('fashion-reactnet_mini')
    assert teacher.size == 32 and teacher.mean.numel() == teacher.std.numel() == 1

def test_small_pictures_are_enlarged_for_a_teacher_that_knows_its_size(tmp_path):
    r = make_recipe('fashion', sizes='16', bs=32, width=.125, start='',
                    teacher=known(tmp_path/'net.safetensors', size=[32, 32]))
    learn = make_learner(r, make_dls(r, device='cpu', images=64))
    seen = {m: [] for m in (learn.model, learn.distill.teacher.model)}
    for m in seen: m.register_forward_pre_hook(lambda m, args: seen[m].append(args[0].shape[-1]))
    with learn.no_bar(), learn.no_logging(): learn.fit_step(1, .01)
    assert 16 in seen[learn.model] and {*seen[learn.distill.teacher.model]} == {32}

def test_a_teacher_in_the_home_folder(tmp_path, monkeypatch):
    monkeypatch.setenv('HOME', str(tmp_path))
    monkeypatch.setenv('USERPROFILE', str(tmp_path))
    known(tmp_path/'model.safetensors')
    assert network_file('~') == str(tmp_path/'model.safetensors')
    assert load_teacher('~/model.safetensors').chans == 1

def fit_teacher(folder, model, stop_after=None):
    "3 epochs of 4 batches, the first on small pictures"
    set_seed(0, reproducible=True)
    r = make_recipe('cifar10-teacher', data='fashion', model=model, width=.125, bs=32, lr=.1,
                    epochs=3, sizes='16,32')
    stop = [StopAfter(stop_after)] if stop_after else []
    learn = make_learner(r, make_dls(r, device='cpu', images=128), cbs=stop)
    event = learn.stop_after.stop if stop else None
    with learn.no_bar(), learn.no_logging():
        learn.fit_step(r.epochs, r.lr, r.schedule, out=folder, stop=event)
    return learn

@pytest.mark.parametrize('model', real_nets)
def test_teacher_resumes(tmp_path, model):
    "stopped within epochs, it ends with the weights, momenta and statistics of one that was not"
    whole = fit_teacher(tmp_path/'whole', model)
    for _ in range(2):
        with pytest.raises(Interrupted): fit_teacher(tmp_path/'parts', model, 5)
    parts = fit_teacher(tmp_path/'parts', model)
    a, b = whole.model.state_dict(), parts.model.state_dict()
    assert any('running_mean' in k for k in a) and all(torch.equal(a[k], b[k]) for k in a)
    assert [list(r) for r in whole.recorder.values] == [list(r) for r in parts.recorder.values]
