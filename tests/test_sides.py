"Sides of pictures: what `check_side` says is what a forward pass does, for any row, stem and stride."
import random
import pytest
import torch
from torch import nn
from bnn_bn import models
from bnn_bn.layers.blocks import BiRealBlock, ReActBlock, Spec, XnorBlock
from bnn_bn.models import Backbone, binary_net, check_side, register_backbone

BLOCKS = BiRealBlock, ReActBlock, XnorBlock

@pytest.fixture(autouse=True)
def table(monkeypatch): monkeypatch.setattr(models, 'backbones', dict(models.backbones))

def passes(net, side, width=None):
    "does a picture pass, without being looked at before?"
    x = torch.randn(1, 2, side, width or side) # a 1x1 stem needs two channels
    try: nn.Sequential.forward(net, x)
    except RuntimeError: return False
    return True

def fits(name, stem, side):
    try: check_side(name, stem, side)
    except ValueError as e: return str(e)
    return True

def drawn(r):
    "a row and a stem"
    depths = [r.choice([0, 1, 1, 2]) for _ in range(r.randint(0, 2))]
    stages = tuple((8, depth, r.choice([1, 2, 2, 3, 4])) for depth in [1, *depths])
    row = Backbone(r.choice(BLOCKS), stages, stem_channels=8, pool=r.random() < .4)
    return row, (r.choice([1, 3, 5, 7]), r.choice([1, 2, 3, 4]), r.random() < .5)

@pytest.mark.parametrize('seed', range(12))
def test_a_side_is_refused_where_a_forward_pass_fails(seed):
    r = random.Random(seed)
    row, stem = drawn(r)
    register_backbone('drawn', row)
    net = binary_net('drawn', stem=stem, in_chans=2, n_out=2).eval()
    for side in [*range(1, 9), *r.sample(range(9, 120), 24)]:
        said = fits('drawn', stem, side)
        assert (said is True) == passes(net, side), (row, stem, side, said)
        if said is True: continue
        near = said.rsplit(' to ', 1)[1].split(' or ')
        assert len(near) == 2 and all(passes(net, int(s)) for s in near), said

def test_each_side_of_a_picture_counts():
    net = binary_net('reactnet18', width=.125, stem='cifar', in_chans=2, n_out=2).eval()
    for sides in (32, 24), (8, 40), (24, 28), (30, 32), (20, 24), (24, 20):
        good = all(fits('reactnet18', 'cifar', s) is True for s in sides)
        assert good == passes(net, *sides)

def test_vgg_behind_a_stem_that_shrinks():
    net = binary_net('vgg11', stem=(7, 2, True), width=.125, in_chans=1)
    with pytest.raises(ValueError, match='image side 32: vgg11 .* to 125 or 126'):
        net(torch.zeros(1, 1, 32, 32))
    assert net(torch.zeros(1, 1, 125, 125)).shape == (1, 1000)

@pytest.mark.parametrize('stride', range(1, 6))
@pytest.mark.parametrize('block', BLOCKS)
def test_a_stride_divides_the_map(block, stride):
    for side in 12, 16, 60:
        if side % stride and block is not XnorBlock: continue
        made = block(8, 8, stride, Spec(), (1.,)*getattr(block, 'branches', 1))
        y = made(torch.randn(1, 8, side, side))
        assert y.shape[-1] == -(-side//stride)

def test_a_stem_of_stride_4():
    net, x = binary_net('reactnet18', stem=(7, 4, False), width=.125), torch.zeros(1, 3, 224, 224)
    assert net.body.stem(x).shape[-1] == 56 and net(x).shape == (1, 1000)
