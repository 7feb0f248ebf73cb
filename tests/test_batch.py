"""What an image gets does not depend on its neighbours in the batch, in training as in use, unless
a norm makes it so."""
import pytest
import torch
import torch.nn.functional as F
from bnn_bn.data import fashion_mini
from bnn_bn.models import create_model

MOVED = 'shift', 'gain', 'slope', 'norm'

def network(norm):
    "in train mode, in float64, so that rounding does not reach a sign"
    torch.manual_seed(0)
    model = create_model(f'reactnet_mini_{norm}', n_out=10, in_chans=1).double()
    for n, p in model.named_parameters():
        if any(k in n for k in MOVED): p.data += .3*torch.randn_like(p)
    return model.train()

@pytest.fixture(scope='module')
def images():
    pictures = [x for x, _ in fashion_mini(device='cpu').valid]
    return torch.cat(pictures)[:24].double()

def first_four(model, images):
    "answers for the same four images: among 16, among 16 others, alone"
    others = torch.cat([images[:4], images[-12:]])
    return [model(x)[:4].detach() for x in (images[:16], others, images[:4])]

@pytest.mark.parametrize('norm', ['nobn', 'naive'])
def test_no_norm_no_neighbours(norm, images):
    "as many neighbours: the same bits; none: within rounding, for the order of sums may differ"
    a, b, alone = first_four(network(norm), images)
    assert torch.equal(a, b)
    torch.testing.assert_close(alone, a, rtol=1e-12, atol=1e-12)

def test_norm_mixes_the_batch(images):
    "with running statistics it does not, but it is not trained so"
    model = network('bn')
    a, b, alone = first_four(model, images)
    assert (a - b).abs().max() > .05
    assert (a - alone).abs().max() > .05
    a, b, _ = first_four(model.eval(), images)
    assert torch.equal(a, b)

def gradients(model, x, y):
    return torch.autograd.grad(F.cross_entropy(model(x), y), list(model.parameters()))

@pytest.mark.parametrize('norm', ['nobn', 'bn'])
def test_gradient_is_a_sum_over_images(norm, images):
    """Without a norm a batch's gradient is the mean of its images' own, so it can be had one image
    at a time; with batch norm it is not."""
    model, x, y = network(norm), images[:4], torch.arange(4)
    whole = gradients(model, x, y)
    parts = [gradients(model, a, b) for a, b in zip(x.split(1), y.split(1))]
    pairs = [(w, sum(ps)/4) for w, ps in zip(whole, zip(*parts)) if w.abs().max() > 1e-9]
    far = max(((w - p).abs().max()/w.abs().max()).item() for w, p in pairs)
    assert far < 1e-9 if norm == 'nobn' else far > .1
