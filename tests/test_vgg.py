"mmpretrain's VGGs, at full width: a file with its names, pictures, and the command that measures."
import os, re, subprocess, sys
from pathlib import Path
import numpy as np, pytest, torch, torch.nn.functional as F
from PIL import Image
from torchvision.transforms import v2
from bnn_bn.others.published import from_mmpretrain, mmpretrain_names
from bnn_bn.models import create_model
from bnn_bn.train import run

CLASSES, BIN = 6, Path(sys.executable).parent
STAGES = {11: (1, 1, 2, 2, 2), 13: (2, 2, 2, 2, 2), 16: (2, 2, 3, 3, 3), 19: (2, 2, 4, 4, 4)}

def network(name):
    "torchvision's network with random numbers everywhere"
    torch.manual_seed(0)
    with torch.device('meta'): model = create_model(name, n_out=CLASSES)
    def value(n, t):
        if not t.is_floating_point(): return torch.tensor(3)
        if t.numel() > 2**23: return band(t.shape)
        if t.dim() > 1: return torch.randn(t.shape)*(2/t[0].numel())**.5
        gain = '_bn' in name and n.endswith('weight')
        positive = gain or n.endswith('var')
        if positive: return torch.rand(t.shape) + .5
        return torch.randn(t.shape)/10
    model.load_state_dict({n: value(n, t) for n, t in model.state_dict().items()}, assign=True)
    return model.eval()

def band(shape):
    "a matrix whose rows are a band of numbers that moves by one: quickly drawn"
    return (torch.randn(sum(shape))/50).as_strided(shape, (1, 1)).contiguous()

def their_state(model, depth, bn):
    "the names by a second way: blocks of convolution, norm and ReLU, and pools, stage by stage"
    stages = STAGES[depth]
    numbers = [sum(stages[:i]) + i + j for i, d in enumerate(stages) for j in range(d)]
    norm = ['bn.weight', 'bn.bias', 'bn.running_mean', 'bn.running_var', 'bn.num_batches_tracked']
    parts = ['conv.weight', 'conv.bias'] + norm*bn
    names = [f'backbone.features.{n}.{p}' for n in numbers for p in parts]
    names += [f'backbone.classifier.{i}.{p}' for i in (0, 3, 6) for p in ('weight', 'bias')]
    return dict(zip(names, model.state_dict().values(), strict=True))

def pictures(root):
    rng = np.random.default_rng(0)
    for part in ('train', 'val'):
        for c in range(CLASSES):
            (root/part/f'n{c}').mkdir(parents=True)
            picture = Image.fromarray(rng.integers(0, 256, (9, 12, 3), dtype=np.uint8))
            picture.resize((320, 270)).save(root/part/f'n{c}'/'0.png')

def evaluate(file, path):
    "the same in this process"
    run.bnn_eval(str(file), path=str(path), device='cpu', bs=6)

def refused(words): return pytest.raises(SystemExit, match=words)

def bnn_eval(file, path):
    command = [BIN/'bnn_eval', file, '--path', path, '--device', 'cpu', '--bs', '6']
    env = dict(os.environ, OMP_NUM_THREADS='1')
    return subprocess.run(command, capture_output=True, text=True, env=env)

@pytest.fixture
def room(tmp_path):
    "a folder whose large files go at the end"
    yield tmp_path
    for file in tmp_path.glob('*.pth'): file.unlink()

@pytest.mark.parametrize('bn', [False, True], ids=['plain', 'bn'])
def test_whole_way(bn, room):
    model = network(f"vgg11{'_bn'*bn}_real")
    file = room/'vgg11.pth'
    meta = dict(epoch=100, CLASSES=['a', 'b'])
    torch.save(dict(state_dict=their_state(model, 11, bn), meta=meta), file)
    for (n, a), b in zip(from_mmpretrain(file).state_dict().items(), model.state_dict().values()):
        assert torch.equal(a, b), n
    pictures(room/'set')
    normalise = v2.Normalize((123.675, 116.28, 103.53), (58.395, 57.12, 57.375))
    usual = v2.Compose([v2.Resize(256), v2.CenterCrop(224), v2.PILToTensor(),
                        v2.ToDtype(torch.float32), normalise])
    x = torch.stack([usual(Image.open(f)) for f in sorted((room/'set/val').glob('*/*'))])
    with torch.no_grad(): pred = model(x)
    order, y = pred.argsort(1, descending=True), torch.arange(CLASSES)[:, None]
    done = bnn_eval(file, room/'set')
    assert done.returncode == 0, done.stderr
    top1, top5, loss, n = re.search(r'top-1 ([\d.]+)%, top-5 ([\d.]+)%, loss ([\d.]+) on (\d+) '
                                     'images', done.stdout).groups()
    def percent(hits): return round(100*hits.float().mean().item(), 2)
    want = percent(order[:, :1] == y), percent((order[:, :5] == y).any(1)), CLASSES
    assert (float(top1), float(top5), int(n)) == want
    assert abs(float(loss) - F.cross_entropy(pred, y[:, 0]).item()) < 2e-4

@pytest.mark.parametrize('depth', [11, 13, 16, 19])
@pytest.mark.parametrize('bn', [False, True], ids=['plain', 'bn'])
def test_names(depth, bn):
    with torch.device('meta'): model = create_model(f"vgg{depth}{'_bn'*bn}_real")
    assert list(mmpretrain_names(model).values()) == list(their_state(model, depth, bn))

def test_refused(room):
    with torch.device('meta'): model = create_model('vgg11_real', n_out=4)
    shapes = {k: t.shape for k, t in their_state(model, 11, False).items()}
    torch.save({k: torch.zeros(shape) for k, shape in shapes.items()}, room/'vgg.pth')
    pictures(room/'set')
    with refused('a network of 4 classes, and the data has 6'): evaluate(room/'vgg.pth', room/'set')
    (room/'vgg.pth').write_bytes(b'')
    with refused('vgg.pth: not a whole torch file'): evaluate(room/'vgg.pth', room/'set')
