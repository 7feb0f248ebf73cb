"What an image gets does not depend on its neighbours in the batch, in training as in use, unless a norm makes it so."
import pytest, torch, torch.nn.functional as F
from bnn_bn.data import fashion_mini
from bnn_bn.models import create_model

def network(norm):
    "in train mode, in float64, so that rounding does not reach a sign"
    torch.manual_seed(0)
    model = create_model(f'reactnet_mini_{norm}', n_out=10, in_chans=1).double()
    for n, p in model.named_parameters():
        if any(k in n for k in ('shift', 'gain', 'slope', 'norm')): p.data += .3*torch.randn_like(p)
    return model.train()

@pytest.fixture(scope='module')
def images(): return torch.cat([x for x, _ in fashion_mini(device='cpu').valid])[:24].double()

@pytest.mark.parametrize('norm', ['nobn', 'naive'])
def test_no_norm_no_neighbours(norm, images):
    model = network(norm)
    a, b, alone = (model(x)[:4].detach() for x in (images[:16], torch.cat([images[:4], images[-12:]]), images[:4]))
    assert torch.equal(a, b)                                     # other neighbours, as many: the same bits
    torch.testing.assert_close(alone, a, rtol=1e-12, atol=1e-12) # none: within rounding, as the convolution may sum in another order

def test_norm_mixes_the_batch(images):
    model = network('bn')
    a, b, alone = (model(x)[:4].detach() for x in (images[:16], torch.cat([images[:4], images[-12:]]), images[:4]))
    assert (a - b).abs().max() > .05 and (a - alone).abs().max() > .05
    model.eval()
    a, b = (model(x)[:4].detach() for x in (images[:16], torch.cat([images[:4], images[-12:]])))
    assert torch.equal(a, b)                                     # with running statistics it does not, but it is not trained so

def test_gradient_is_a_sum_over_images(images):
    "without a norm a batch's gradient is the mean of its images' own, so it can be had one image at a time; with batch norm it is not"
    y, x = torch.arange(4), images[:4]
    def gradients(model, xs, ys): return [torch.autograd.grad(F.cross_entropy(model(a), b), list(model.parameters())) for a, b in zip(xs, ys)]
    for norm in ('nobn', 'bn'):
        model = network(norm)
        whole, = gradients(model, [x], [y])
        parts = gradients(model, x.split(1), y.split(1))
        far = max(((w - sum(ps)/4).abs().max()/w.abs().max()).item() for w, ps in zip(whole, zip(*parts)) if w.abs().max() > 1e-9)
        assert far < 1e-9 if norm == 'nobn' else far > .1, norm
