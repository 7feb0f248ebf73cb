"""Put the network of a finished run into the package: `python tools/add_pretrained.py RUN NAME`.

RUN is the folder of a `bnn_train` run (result.json, config.json, history.csv, model.safetensors,
best.safetensors). NAME is how users ask for it, by custom DATA-BACKBONE: cifar10-reactnet18,
cifar10-reactnet18-bn, cifar10-reactnet18-w25. The network of the last epoch is shipped; its best
epoch was chosen on the validation images, `--which best` ships it nevertheless. Both accuracies are
on the card. Written are bnn_bn/pretrained/NAME.bnn and its card in bnn_bn/pretrained/cards.json,
with every figure read from the run.
"""
import argparse, csv, json
from pathlib import Path
from bnn_bn.onebit.graph import to_bytes
from bnn_bn.checkpoint import load_network
from bnn_bn.deploy import facts, pack
from bnn_bn.train.recipes import Recipe, make_dls
from bnn_bn.onebit.unpack import compare_graphs, latent_info, unpack
from bnn_bn.weights import PRETRAINED, add_pretrained

IMAGES = dict(
    fashion='the 2,000 embedded test images of Fashion-MNIST, 32x32',
    cifar10='the 10,000 test images of CIFAR-10', cifar100='the 10,000 test images of CIFAR-100',
    imagenet='the 50,000 validation images of ImageNet')
LIMITS = dict(
    fashion='trained on 10,000 pictures of clothes in grey; a demonstration, for nothing that '
            'matters',
    cifar10='trained on 50,000 small colour pictures of ten classes; answers any other picture '
            'with one of them, just as surely',
    cifar100='trained on 50,000 small colour pictures of a hundred classes; answers any other '
             'picture with one of them, just as surely',
    imagenet='trained on photographs of the web; its errors are not spread evenly over people and '
             'places')
LICENCES = dict(
    fashion='Fashion-MNIST, MIT licence, (c) 2017 Zalando SE',
    cifar10='CIFAR-10 (Krizhevsky 2009): no licence is stated, cite the report; the pictures are '
            'not part of this package',
    cifar100='CIFAR-100 (Krizhevsky 2009): no licence is stated, cite the report; the pictures are '
             'not part of this package',
    imagenet='ImageNet: for research that is not commercial, as its terms say; the pictures are '
             'not part of this package')
REBUILT = dict(
    nobn='signs, thresholds, scales, biases, slopes and the classifier are those of the file; '
         'magnitudes of latent weights are not known',
    bn='as for networks without batch norm; each batch norm is an equivalent one, its running '
       'statistics begin at a guess')


def describe(run:Path, result:dict, which:str)->dict:
    "the facts of a card, all from the files of the run"
    recipe, last = result['recipe'], result['steps'][-1]
    with open(run/'history.csv') as f: rows = list(csv.DictReader(f))
    seconds = sum(float(r['seconds']) for r in rows)
    data, versions = recipe['data'], result['versions']
    threads = versions['threads']
    held_out = result.get('holdout') or 0
    return dict(
        data=data, accuracy_last=last['last'], accuracy_best=last['best'], shipped=which,
        epochs=len(rows), seed=result['seed'], hours=round(seconds/3600, 3),
        cost=f"{versions['device']}, {threads} thread{'s'*(threads > 1)}",
        recipe=recipe, command=result['command'],
        versions={k: v for k, v in versions.items() if k not in ('threads', 'device')},
        validated_on=f'{held_out:,} training images that were held '
                     f'out' if held_out else IMAGES[data],
        limits=LIMITS[data], licence=LICENCES[data], rebuilt=REBUILT['bn' if recipe['norm'] == 'bn' else 'nobn'])


def parse_options():
    p = argparse.ArgumentParser(description=__doc__.split('\n')[0])
    p.add_argument('run', type=Path, help='folder of a finished run')
    p.add_argument('name', help='name of the network, such as cifar10-reactnet18')
    p.add_argument('--which', choices=('last', 'best'), default='last', help='what is shipped')
    p.add_argument('--path', help="directory of the run's data, for classes, mean and deviation of "
                                  'the images; not needed for fashion')
    p.add_argument('--folder', type=Path, default=PRETRAINED,
                   help="where it is written; default: the package's own")
    p.add_argument('--limits', help='a sentence for the card in place of the usual one of the data')
    p.add_argument('--cost', help='what else is to be said of the cost, such as "wall clock of a '
                                  'machine shared with other work"')
    p.add_argument('--force', action='store_true', help='replace a network of that name')
    return p.parse_args()

def read_result(run):
    "result.json of a finished run of known data"
    file = run/'result.json'
    if not file.exists():
        raise SystemExit(f'{run}: no result.json, so no finished run; bnn_train --resume ends it')
    result = json.loads(file.read_text())
    data = result['recipe']['data']
    if data in IMAGES: return result
    raise SystemExit(f'{run}: data {data!r} has no sentences here; add them')

def packed(a, result, about):
    "the graph that is shipped, with the facts of the data"
    model = load_network(a.run/('model.safetensors' if a.which == 'last' else 'best.safetensors'))
    known = facts(make_dls(Recipe(**result['recipe']), a.path, 'cpu', download=False))
    return pack(model, **known, accuracy=about[f'accuracy_{a.which}'], name=a.name,
                **latent_info(model)).graph

def main():
    a = parse_options()
    result = read_result(a.run)
    about = describe(a.run, result, a.which)
    if a.limits: about['limits'] = a.limits
    if a.cost: about['cost'] += f', {a.cost}'
    graph = packed(a, result, about)
    rounded = compare_graphs(pack(unpack(graph)).graph, graph)
    card = add_pretrained(a.name, to_bytes(graph), a.folder, a.force, config=graph.info['config'],
                          **about)
    print(card)
    print(f'unpacked and packed again: all arrays '
          f'equal{", but for the rounding of " + ", ".join(rounded) if rounded else ""}')


if __name__ == '__main__': main()
