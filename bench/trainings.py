"""Trainings as processes of a script: `columns.py`, `late.py` and `parallel.py` begin them.

A script that is stopped stops them too, and waits until they have saved their state. What is finished
is taken as it is only where the script would train it in the same manner.
"""
import json, signal, subprocess, sys
from dataclasses import fields

SIZES = 'seed', 'images', 'holdout', 'valid_images'

def stop_on_term():
    "SIGTERM ends a script as Ctrl-C does"
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))

def stop(processes):
    "end what still runs; each saves its state first"
    for p in processes: p.terminate()
    for p in processes: p.wait()

def run(command, **kwargs):
    "a training to its end; kwargs of Popen"
    process = subprocess.Popen([*map(str, command)], **kwargs)
    try: failed = process.wait()
    finally: stop([process])
    if failed: raise SystemExit(f'the training ended with status {failed}')

def settings_of(words):
    "what words of `bnn_train` say of its numbers"
    from bnn_bn.train.options import spelt_out, train_parser
    from bnn_bn.train.recipes import Recipe, make_recipe
    from bnn_bn.train.run import row_of
    a = train_parser().parse_args(spelt_out([*map(str, words)]))
    told = {f.name: getattr(a, f.name, None) for f in fields(Recipe)}
    recipe = make_recipe(a.recipe, **{k: v for k, v in told.items() if v is not None})
    found = row_of(recipe) | {k: getattr(a, k) for k in SIZES}
    if a.amp != 'auto': found['amp'] = a.amp.replace('none', '')
    if a.compiled != 'auto': found['compiled'] = a.compiled == 'yes'
    return found

def is_done(folder, words):
    "has the training of these words ended there? SystemExit where one of others has"
    file = folder/'result.json'
    if not file.exists(): return False
    result = json.loads(file.read_text())
    old = result | result['recipe'] # older ones lack what was not there, and that is nothing
    other = [f'{k} {old.get(k)!r} there, {v!r} now' for k, v in settings_of(words).items()
             if (old.get(k) or None) != (v or None)]
    if not other: return True
    raise SystemExit(f"{folder}: a finished training of other options ({'; '.join(other)}); "
                     'take its options, or another --runs')
