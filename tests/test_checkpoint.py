"The files of networks, rule by rule: digest, header, parts that may differ, dtypes, warnings."
import copy, hashlib, json, struct, warnings
import pytest, torch
from safetensors import safe_open
from safetensors.torch import save_file
from torch import nn
from bnn_bn import checkpoint
from bnn_bn.checkpoint import load_info, load_network, read_tensors, read_weights, save_network
from bnn_bn.checkpoint import tensors_digest, write_tensors
from bnn_bn.core.errors import CheckpointError
from bnn_bn.deploy import pack
from bnn_bn.layers.activations import RSign
from bnn_bn.layers.signed import NFConv2d, ScaleShift, SignConv2d
from bnn_bn.models import binary_net, decay_groups, exempt_parameters
from bnn_bn.others.described import StepsNet

def refused(match): return pytest.raises(CheckpointError, match=match)

def net(**options):
    torch.manual_seed(0)
    options = dict(width=.25, n_out=10, stem='cifar') | options
    return binary_net('reactnet_mini', **options).eval()

@pytest.fixture(scope='module')
def mini(): return net()

@pytest.fixture
def path(tmp_path): return tmp_path/'net.safetensors'

@pytest.fixture
def saved(mini, path): return save_network(mini, path, accuracy=.5)


# Digest and header -------------------------------------------------------------------------------

def meta_of(file):
    with safe_open(file, 'pt') as f: return f.metadata()

TENSORS = dict(b=torch.arange(6.).view(2, 3), a=torch.tensor([True, False]))

def test_the_digest_is_sha256_over_names_dtypes_shapes_and_bytes():
    "written out once more, so that files of other versions stay readable"
    want = hashlib.sha256(b'text' + b'a torch.bool (2,)' + b'\x01\x00' + b'b torch.float32 (2, 3)'
                          + struct.pack('<6f', *range(6))).hexdigest()
    assert tensors_digest(TENSORS, 'text') == want
    assert tensors_digest(dict(reversed(TENSORS.items())), 'text') == want
    assert tensors_digest({}) == hashlib.sha256(b'').hexdigest()
    b = TENSORS['b'].t().contiguous().t().requires_grad_() # another order of memory
    assert not b.is_contiguous() and tensors_digest(dict(TENSORS, b=b), 'text') == want


@pytest.mark.parametrize('other', (
    dict(TENSORS, b=TENSORS['b'] + 1), dict(TENSORS, b=TENSORS['b'].view(3, 2)),
    dict(TENSORS, b=TENSORS['b'].view(torch.int32)), dict(a=TENSORS['a'], c=TENSORS['b'])))
def test_any_change_gives_another_digest(other):
    assert tensors_digest(other, 'text') != tensors_digest(TENSORS, 'text')
    assert tensors_digest(TENSORS, 'texts') != tensors_digest(TENSORS, 'text')


def test_what_is_written_is_read(path):
    "non-contiguous, scalar, empty and one-byte tensors; and a header"
    tensors = dict(TENSORS, t=TENSORS['b'].t(), s=torch.tensor(2.), e=torch.zeros(0, 3),
                   g=torch.ones(2, requires_grad=True))
    write_tensors(path, tensors, kind=[1, None, 'x'])
    got, head = read_tensors(path)
    assert head == dict(version=1, kind=[1, None, 'x']) and got.keys() == tensors.keys()
    for k, t in tensors.items(): assert torch.equal(got[k], t) and got[k].dtype == t.dtype
    assert set(meta_of(path)) == {'bnn_bn', 'sha256'}


def test_the_same_contents_have_the_same_digest(path):
    "keys are sorted; the file that stood there is kept if asked"
    write_tensors(path, TENSORS, x=1, y=2)
    first, data = meta_of(path), path.read_bytes()
    write_tensors(path, TENSORS, path.with_name('old'), y=2, x=1)
    assert meta_of(path) == first and path.with_name('old').read_bytes() == data


def plain_file(path, **meta): save_file(TENSORS, path, meta or None)

def with_head(path, text, digest=None):
    "a file with any header, rightly signed unless another digest is given"
    right = tensors_digest(TENSORS, text)
    plain_file(path, bnn_bn=text, sha256=right if digest is None else digest)
    return path


NO_HEADERS = ('', 'no json', '[]', '1', 'null', '{}', '{"version": 0}', '{"version": true}',
              '{"version": "1"}', '{"version": 1.0}', '{"version": null}', '['*10**5)

@pytest.mark.parametrize('text', NO_HEADERS, ids=lambda t: t[:20])
def test_a_header_that_is_none(text, path):
    with_head(path, text)
    with refused(f'^{path}: its header is not one of ours; use another copy'): read_tensors(path)


def test_versions(path):
    assert read_tensors(with_head(path, '{"version": 1}'))[1] == dict(version=1)
    with refused(f'^{path}: format version 2, this bnn_bn reads 1'):
        read_tensors(with_head(path, '{"version": 2}'))


def test_digests_that_do_not_fit(path):
    with_head(path, '{"version": 1}', 'ab')
    with refused(f'^{path}: altered, its sha256'): read_tensors(path)
    plain_file(path, bnn_bn='{"version": 1}')
    with refused('altered'): read_tensors(path)
    for meta in ({}, dict(sha256='ab'), dict(format='pt')):
        plain_file(path, **meta)
        with refused(f'^{path}: a safetensors file without a bnn_bn header'): read_tensors(path)


def test_files_that_are_none(tmp_path, monkeypatch):
    "a missing file and a folder are FileNotFoundErrors; anything else is named"
    for missing in (tmp_path, tmp_path/'none'):
        with pytest.raises(FileNotFoundError, match=f'^{missing}: no such'): read_tensors(missing)
    for data in (b'', b'x', b'\x80\x04N.', bytes(100)):
        (tmp_path/'f').write_bytes(data)
        with refused(f"^{tmp_path}/f: not a whole safetensors file .*truncated or of another kind"):
            read_tensors(tmp_path/'f')
    monkeypatch.setenv('HOME', str(tmp_path))
    write_tensors('~/g', TENSORS)
    assert read_tensors('~/g')[0].keys() == TENSORS.keys()


# Weights -----------------------------------------------------------------------------------------

def test_weights_of_any_file(path):
    "ours with its checksum, others as they are, and torch's with tensors alone"
    write_tensors(path, TENSORS, kind='x')
    assert read_weights(path).keys() == TENSORS.keys()
    for meta in ({}, dict(format='pt')):
        plain_file(path, **meta)
        assert torch.equal(read_weights(path)['b'], TENSORS['b'])
    for meta in (dict(bnn_bn='{"version": 1}'), dict(sha256='ab'), dict(bnn_bn='{}', sha256='ab')):
        plain_file(path, **meta)
        with refused('altered|without a bnn_bn header'): read_weights(path)
    other = path.with_name('w.pt')
    torch.save(TENSORS, other)
    assert torch.equal(read_weights(other)['b'], TENSORS['b'])
    other.write_bytes(b'x')
    with refused(f'{other}'): read_weights(other)


# Networks ----------------------------------------------------------------------------------------

def test_a_network_comes_back(mini, saved, path):
    "in evaluation mode, whatever the mode it was saved in"
    assert saved == path and load_info(path) == dict(config=mini.cfg, info=dict(accuracy=.5))
    again = load_network(path)
    assert not again.training and not any(m.training for m in again.modules())
    want = mini.state_dict()
    assert all(torch.equal(t, want[k]) for k, t in again.state_dict().items())
    save_network(copy.deepcopy(mini).train(), path)
    assert not load_network(path).training and load_info(path) == dict(config=mini.cfg, info={})


def test_saving_changes_no_network(mini, path):
    model = copy.deepcopy(mini).train()
    save_network(model, path)
    assert model.training and model.head.fc.weight.requires_grad
    foreign = nn.Sequential(SignConv2d(3, 4, 3), nn.AdaptiveAvgPool2d(1), nn.Flatten())
    save_network(foreign.train(), path)
    assert foreign.training


@pytest.mark.parametrize('dtype', (torch.float64, torch.float16, torch.bfloat16))
def test_precision_is_kept(dtype, path):
    "counters of batch norm are whole numbers and stay so"
    model = net(norm='bn').to(dtype)
    again = load_network(save_network(model, path))
    assert {p.dtype for p in again.parameters()} == {dtype}
    want = model.state_dict()
    for k, t in again.state_dict().items():
        assert torch.equal(t, want[k]) and t.dtype == want[k].dtype, k


def test_what_is_not_written(mini, path):
    "no module, numbers that are not finite: nothing stands there then; at most five names"
    with pytest.raises(ValueError, match='model'): save_network(mini.state_dict(), path)
    with refused('^Linear is no BinaryNet.*torch.save'): save_network(nn.Linear(2, 2), path)
    bad = copy.deepcopy(mini)
    for p in bad.parameters(): p.data.fill_(torch.inf)
    names = ', '.join([k for k, _ in bad.named_parameters()][:5])
    with refused(f'^{path}: {names} not finite: nothing was written$'): save_network(bad, path)
    bad = copy.deepcopy(mini)
    bad.head.fc.bias.data[3] = -torch.inf
    with refused('head.fc.bias not finite'): save_network(bad, path)
    assert not path.exists()


OURS = NFConv2d(3, 3, 1), ScaleShift(3), SignConv2d(3, 3, 1)

@pytest.mark.parametrize('layer', OURS, ids=lambda m: type(m).__name__)
def test_each_layer_of_ours_makes_a_network_ours(layer, path):
    model = nn.Sequential(nn.Conv2d(3, 3, 3), layer, nn.Flatten()).eval()
    x = torch.randn(2, 3, 6, 6)
    again = load_network(save_network(model, path))
    assert isinstance(again, StepsNet) and torch.equal(again(x), model(x)) and not again.training
    assert load_info(path) == dict(info={})


# Parts that may differ ---------------------------------------------------------------------------

def test_other_heads_and_first_convolutions(path):
    "both parts, one, or none are described in the file"
    head = nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(32, 7), nn.ReLU(),
                         nn.Linear(7, 4))
    conv = nn.Conv2d(1, 16, 5, padding=2, bias=False)
    both = {'head': head, 'body.stem.conv': conv}
    for parts in ({}, dict(head=head), {'body.stem.conv': conv}, both):
        model = net()
        for k, m in parts.items(): model.set_submodule(k, m)
        model.eval()
        again = load_network(save_network(model, path))
        x = torch.randn(2, 1 if 'body.stem.conv' in parts else 3, 16, 16)
        assert torch.equal(again(x), model(x))
        assert set(read_tensors(path)[1].get('parts', {})) == set(parts)
        assert ('parts' in read_tensors(path)[1]) == bool(parts)


def test_a_head_that_differs_in_a_number_alone(path):
    "types and shapes are the same; what is computed is not"
    def flatten(model): return next(m for m in model.head.modules() if isinstance(m, nn.Flatten))
    model = net()
    flatten(model).start_dim = 2
    save_network(model, path)
    assert list(read_tensors(path)[1]['parts']) == ['head']
    assert flatten(load_network(path)).start_dim == 2
    model = net()
    model.head.fc.bias = None
    save_network(model, path)
    assert load_network(path).head.fc.bias is None


@pytest.mark.parametrize('name, module', [
    ('body.block1.act', nn.PReLU(16)), ('body.block1.norm', nn.BatchNorm2d(16)),
    ('body.stem.norm', nn.ReLU())])
def test_any_other_part_is_refused(name, module, path):
    model = net()
    assert name in dict(model.named_modules())
    model.set_submodule(name, module)
    kind = type(module).__name__
    with refused(f'(?s)^{name} is {kind}.* and the configuration makes .*may be replaced'):
        save_network(model, path)
    assert not path.exists()


def test_a_part_that_is_missing_or_differs_in_a_number(path):
    model = net()
    model.body.block2.alpha = .7
    with refused('^body.block2 is'): save_network(model, path)
    model = net()
    del model.body.block2
    with refused('^body.block2 is None'): save_network(model, path)
    for m in (model := net()).modules():
        if hasattr(m, 'inplace'): m.inplace = not m.inplace # the numbers are the same
    save_network(model, path)


# Other classes, other channels -------------------------------------------------------------------

def test_fresh_classifiers_and_stems(mini, saved):
    "the warning names file, part and numbers"
    with pytest.warns(UserWarning) as said: model = load_network(saved, n_out=3, in_chans=1)
    assert model(torch.zeros(1, 1, 16, 16)).shape == (1, 3) and not model.training
    texts = [str(w.message) for w in said]
    fresh = 'is fresh, train it before use'
    assert texts == [f'{saved} has 10 classes: the classifier for 3 {fresh}',
                     f'{saved} has 3 channels: the first convolution for 1 {fresh}']
    same = set(mini.state_dict()) - {'head.fc.weight', 'head.fc.bias', 'body.stem.conv.weight'}
    for k in same - {f'body.stem.conv.{p}' for p in ('gain', 'bias')}:
        assert torch.equal(model.state_dict()[k], mini.state_dict()[k]), k
    with warnings.catch_warnings():
        warnings.simplefilter('error')
        for kw in (dict(n_out=10), dict(in_chans=3), dict(num_classes=10, in_chans=3)):
            assert load_network(saved, **kw).n_out == 10
    with pytest.warns(UserWarning, match='classifier for 4'):
        assert load_network(saved, num_classes=4).n_out == 4


def test_a_warning_stands_at_the_line_of_the_caller(saved):
    with pytest.warns(UserWarning) as said: load_network(saved, n_out=3, in_chans=1)
    assert [w.filename for w in said] == [__file__]*2


def test_a_network_of_steps_keeps_its_ends(path):
    model = nn.Sequential(SignConv2d(3, 4, 3), nn.AdaptiveAvgPool2d(1), nn.Flatten(),
                          nn.Linear(4, 5))
    save_network(model, path)
    assert load_network(path, n_out=5, in_chans=3).n_out == 5
    with refused(f'^{path} has 5 classes, 6 are asked for: load it as it is'):
        load_network(path, n_out=6)
    with refused(f'^{path} has 3 channels, 4 are asked for'): load_network(path, in_chans=4)


# Headers of strangers ----------------------------------------------------------------------------

def lie(path, model, **head):
    write_tensors(path, model.state_dict(), **dict(dict(config=model.cfg, info={}), **head))
    return path

def test_a_file_of_something_else(mini, path):
    write_tensors(path, TENSORS, state=[])
    with refused(f'^{path}: holds the state of a training, not a network'): load_network(path)
    assert load_info(path) == {}


@pytest.mark.parametrize('head', (
    dict(config=[1, 2]), dict(config={}), dict(config=dict(backbone='x')), dict(network=[]),
    dict(network=None), dict(parts={'body': dict(type='Identity', args={})}), dict(parts=[1]),
    dict(parts={'head': dict(type='eval', args={})})), ids=str)
def test_a_header_that_describes_no_network(head, mini, path):
    with refused(f'^{path}: '): load_network(lie(path, mini, **head))


def test_shapes_are_compared_before_a_network_is_made(mini, path, monkeypatch):
    "what a header asks for is made without memory first, and refused by the name of the weight"
    assert load_network(lie(path, mini)).n_out == 10
    made = []
    real = checkpoint._from_head
    def from_head(head): made.append(torch.empty(0).device.type); return real(head)
    monkeypatch.setattr(checkpoint, '_from_head', from_head)
    load_network(path)
    assert made == ['meta', 'cpu']
    made.clear()
    lie(path, mini, config=dict(mini.cfg, n_out=11))
    with refused(f'^{path}: .*head.fc'): load_network(path)
    assert made == ['meta']
    text = json.dumps(dict(version=1, config=dict(mini.cfg, n_out=11), info={}), sort_keys=True)
    assert read_tensors(path)[1] == json.loads(text)

SMALL = dict(backbone='reactnet_mini', n_out=3, stem='cifar', width=.25)

def classified_by_a_convolution():
    model = binary_net(**SMALL).eval()
    model.head = nn.Sequential(nn.Conv2d(32, 5, 1), nn.AdaptiveAvgPool2d(1), nn.Flatten())
    return model

def headless(last):
    model = binary_net(**SMALL).eval()
    if last: model.head.fc = nn.Identity()
    else: model.head = model.head[:-1]
    return model

@torch.no_grad()
@pytest.mark.parametrize('make,n_out', [(classified_by_a_convolution, 5), (lambda: headless(True), 32),
                                        (lambda: headless(False), 32)])
def test_a_head_without_a_linear_layer(make, n_out, tmp_path):
    "it has no classifier; what it gives is counted, and another number of classes gets a plain head"
    model, x = make(), torch.randn(2, 3, 32, 32)
    features = model.forward_features(x)
    assert model(x).shape == (2, n_out) and model.n_out == model.cfg['n_out'] == n_out
    assert torch.equal(model.forward_head(features, pre_logits=True), model(x))
    assert type(model.get_classifier()) is nn.Identity and model.num_features == 32
    file = save_network(model, tmp_path/'n.safetensors')
    assert torch.equal(load_network(file, n_out=n_out)(x), model(x))
    with pytest.warns(UserWarning, match='fresh'): other = load_network(file, n_out=3)
    assert other(x).shape == (2, 3) and other.n_out == 3
    assert model.reset_classifier(4)(x).shape == (2, 4)

def test_a_convolution_before_the_linear_layer():
    model, x = binary_net(**SMALL), torch.randn(2, 3, 32, 32)
    model.head = nn.Sequential(nn.Conv2d(32, 64, 1), *model.head[:-1], nn.Linear(64, 5))
    assert (model.n_out, model.num_features) == (5, 32) and model.reset_classifier(4)(x).shape == (2, 4)

def test_the_map_is_of_pictures_that_are_checked():
    with pytest.raises(ValueError, match='takes .B,3,H,W'):
        binary_net(**SMALL).forward_features(torch.randn(2, 1, 32, 32))

def shared_weight(model): model.body.block2.conv.weight = model.body.block1.conv.weight
def shared_block(model): model.body.block2 = model.body.block1
def shared_activation(model):
    relu, hidden = nn.ReLU(), [nn.Linear(32, 32) for _ in range(2)]
    model.head = nn.Sequential(*model.head[:-1], hidden[0], relu, hidden[1], relu, nn.Linear(32, 3))

@torch.no_grad()
@pytest.mark.parametrize('share', [shared_weight, shared_block, shared_activation])
def test_shared_parts_are_saved_and_packed(share, tmp_path):
    "the file has their numbers under each name"
    model, x = binary_net(**SMALL, norm='naive').eval(), torch.randn(2, 3, 32, 32)
    share(model)
    assert torch.equal(load_network(save_network(model, tmp_path/'n.safetensors'))(x), model(x))
    torch.testing.assert_close(pack(model)(x), model(x), rtol=1e-4, atol=1e-4)

def test_a_shared_block_that_its_place_would_have_otherwise(tmp_path):
    "beta is another one there, and the error says that"
    model = binary_net(**SMALL)
    shared_block(model)
    with pytest.raises(CheckpointError, match='body.block2 is BiRealBlock.beta=1.0., .* makes BiRealBlock.beta=0.98'):
        save_network(model, tmp_path/'n.safetensors')

def test_a_shared_weight_moves_once_a_step():
    model, other = binary_net(**SMALL), nn.Sequential(RSign(8), SignConv2d(8, 8, 3), SignConv2d(8, 8, 3))
    shared_weight(model)
    model.body.block2.conv.gain = model.body.block1.conv.gain
    other[2].weight = other[1].weight
    groups = [p for g in decay_groups(model) for p in g['params']]
    assert len(groups) == len(list(model.parameters())) == len(set(groups))
    for net in (model, other): assert len(exempt_parameters(net)) == len(set(exempt_parameters(net))) > 0
