"""Many trainings side by side on one machine, such as a GPU that one of them does not fill.

    python bench/parallel.py LIST --path DATA --out results/NAME [--runs runs/NAME] [--jobs 12]

LIST is a text file: a line a training, its name and then what goes to `bnn_train`, the recipe first;
`#` begins a comment. Trainings are begun in this order, at most `--jobs` at once, each with a log
RUNS/NAME.log. `TEACHER:NAME` as the value of `--teacher` waits for that training and learns from its
network. Results and histories are copied to `--out` as they come. After a stop or a kill the same
command goes on: what is finished stays, the rest is resumed. A finished training whose line has been
changed since is refused.
"""
import argparse, os, shlex, shutil, subprocess, sys, time
from dataclasses import dataclass
from pathlib import Path
import trainings

ROOT = Path(__file__).resolve().parent.parent
WAIT = 'TEACHER:'
PROGRAM = 'from bnn_bn.train.run import bnn_train; bnn_train()'

@dataclass
class Job:
    name:str
    words:list # of bnn_train
    process:subprocess.Popen = None

    @property
    def teacher(self):
        "the training that this one waits for, or None"
        return next((w.removeprefix(WAIT) for w in self.words if w.startswith(WAIT)), None)

def read_list(text):
    "the jobs of a list; ValueError names a line that is none"
    lines = [shlex.split(line, comments=True) for line in text.splitlines()]
    jobs = [Job(words[0], words[1:]) for words in lines if words]
    names = [j.name for j in jobs]
    for i, job in enumerate(jobs):
        if not job.words: raise ValueError(f'{job.name}: a recipe is needed after the name')
        if job.name in names[:i]: raise ValueError(f'{job.name}: there are two of this name')
        if job.teacher and job.teacher not in names[:i]:
            raise ValueError(f'{job.name}: its teacher {job.teacher} is not in a line above')
    return jobs

def words_of(job, options):
    "all that bnn_train is told"
    words = [str(options.runs/job.teacher) if w.startswith(WAIT) else w for w in job.words]
    path = ['--path', str(options.path)] if options.path else []
    return [*words, '--out', str(options.runs/job.name), '--resume', '--no-download', *path]

def begin(job, options):
    "start a training, or go on with it"
    path = os.pathsep.join(filter(None, [str(ROOT), os.environ.get('PYTHONPATH')]))
    env = dict(os.environ, PYTHONPATH=path)
    command = [sys.executable, '-c', PROGRAM, *words_of(job, options)]
    with open(options.runs/f'{job.name}.log', 'a') as log:
        job.process = subprocess.Popen(command, stdout=log, stderr=log, env=env)

def keep(job, options):
    "copy what a finished training found"
    for file, kind in (('result.json', 'json'), ('history.csv', 'csv')):
        shutil.copy(options.runs/job.name/file, options.out/f'{job.name}.{kind}')

def has_ended(name, options): return (options.runs/name/'result.json').exists()

def fill(waiting, running, options):
    "begin trainings whose teacher is there, in their order, as many as may run at once"
    for job in list(waiting):
        if len(running) >= options.jobs: return
        if job.teacher and not has_ended(job.teacher, options): continue
        begin(job, options)
        waiting.remove(job)
        running.append(job)

def look_after(jobs, options):
    "begin, wait and copy until all are through; the names of those that are not done"
    done = [j for j in jobs if trainings.is_done(options.runs/j.name, words_of(j, options))]
    for job in done: keep(job, options)
    waiting, running, failed = [j for j in jobs if j not in done], [], []
    try:
        fill(waiting, running, options)
        while running:
            time.sleep(.5)
            for job in [j for j in running if j.process.poll() is not None]:
                running.remove(job)
                failed += through(job, options)
            fill(waiting, running, options)
    finally:
        trainings.stop([job.process for job in running])
    return failed + [j.name for j in waiting] # those wait for one that failed

def through(job, options):
    "say what came of a training; its name if nothing did"
    good = job.process.returncode == 0 and has_ended(job.name, options)
    if good: keep(job, options)
    log = options.runs/f'{job.name}.log'
    last = next(reversed(log.read_text().strip().splitlines()), '')
    print(f"{job.name}: {'done' if good else f'failed, see {log}: {last}'}", flush=True)
    return [] if good else [job.name]

def parse_options():
    p = argparse.ArgumentParser(description=__doc__)
    p.formatter_class = argparse.RawDescriptionHelpFormatter
    p.add_argument('list', type=Path, help='text file, a line a training')
    p.add_argument('--path', type=Path, help='directory of the data')
    p.add_argument('--out', type=Path, required=True, help='directory of the results')
    p.add_argument('--runs', type=Path, default=Path('runs/parallel'), help='directory of the runs')
    p.add_argument('--jobs', type=int, default=max(1, (os.cpu_count() or 2) - 2), help='at once')
    return p.parse_args()

def main():
    options = parse_options()
    if options.jobs < 1: raise SystemExit(f'--jobs {options.jobs}: at least 1 is needed')
    try: jobs = read_list(options.list.read_text())
    except (OSError, ValueError) as e: raise SystemExit(f'{options.list}: {e}') from None
    for folder in (options.out, options.runs): folder.mkdir(parents=True, exist_ok=True)
    trainings.stop_on_term()
    failed = look_after(jobs, options)
    if failed: raise SystemExit(f"not done: {', '.join(failed)}")

if __name__ == '__main__': main()
