"""Tables and the picture of what `bench/infer.py` measured; its `--draw` shows them alone."""
import numpy as np
import layers

FLOAT = ('torch', 'torch, channels first', 'torch.compile', 'torch.compile, channels first',
         'ONNX Runtime', 'OpenVINO, float32')
BINARY = 'OpenVINO, binary', 'Larq', 'Larq, default kernels'
INT8 = 'ONNX Runtime, int8', 'OpenVINO, int8'
GROUPS = {'torch': FLOAT[:2], 'torch.compile': FLOAT[2:4], 'ONNX Runtime': FLOAT[4:5],
          'OpenVINO, float32': FLOAT[5:], 'OpenVINO, binary (values wrong)': BINARY[:1],
          'Larq': BINARY[1:], 'int8': INT8}
PARTS = {'counting': 'counting bits', 'after_counting': 'after counting',
         'far': 'weights from further caches', 'stem': 'stem', 'shortcuts': 'shortcuts',
         'pools': 'pools', 'classifier': 'classifier', 'rest': 'rest'}
COLORS = ['#E69F00', '#D55E00', '#0072B2', '#56B4E9', '#CC79A7', '#009E73', '#F0E442', '#999999']
TICKS = [.2, .5, 1, 2, 5, 10, 20, 50, 100, 200]

def fastest(rows, names):
    "the row of the fastest of some rivals, None where none was measured"
    rows = [r for r in rows if r['name'] in names and 'seconds' in r]
    return min(rows, key=lambda r: r['times_first'], default=None)

def by_threads(data):
    "network, threads, rows"
    for name, net in data['nets'].items():
        for threads, rows in net['threads'].items(): yield name, threads, rows

# --- Lines for the terminal

def summary(data):
    rivals = f"{'fastest float32':44}{'OpenVINO, binary':26}{'Larq':26}"
    out = ['times our time, median of the rounds (least to greatest)',
           f"{'':24}{'threads':>8}{'ours, ms':>10}  {rivals}"]
    out += [speed_line(*row) for row in by_threads(data)]
    for name, net in data['nets'].items():
        out += [scaling_line(name, t, r) for t, r in net.get('scaling', {}).items()]
        out += [value_line(name, k, v) for k, v in net.get('values', {}).items()]
    return out + product_lines(data) + layer_lines(data)

def speed_line(name, threads, rows):
    best = fastest(rows, FLOAT)
    cells = [f"{times(best)} {best['name'] if best else ''}", times(fastest(rows, BINARY[:1])),
             times(fastest(rows, BINARY[1:]))]
    ours = f"{name:24}{threads:>8}{1000*rows[0]['seconds']:10.3f}"
    return f'{ours}  {cells[0]:44}{cells[1]:26}{cells[2]:26}'

def times(r):
    if r is None: return f'{"-":>6}'
    return f"{r['times_first']:6.1f} ({r['least']:.1f} to {r['greatest']:.1f})"

def scaling_line(name, t, r):
    faster, least, most = (1/r[k] for k in ('times_first', 'greatest', 'least'))
    return f'{name:24}{t} threads are {faster:.2f} times as fast as one ({least:.2f} to {most:.2f})'

def value_line(name, kind, v):
    if v.get('error'): return f"{name:24}{kind}: {v['error']}"
    return (f"{name:24}{kind}: {v.get('answers', '')}; answers differ by up to {v['largest_difference']:.2g} of "
            f"{v['largest_logit']:.2g}, correlation {v['correlation']:.4f} "
            f"(padding: {v['padding']})")

def product_lines(data):
    "the product alone"
    return [f"{key:24}{r['name']:20}" + (f"{r['gmacs']:7.0f} G products/s, {r['answers']}"
            if 'gmacs' in r else f"{r.get('error', '')}")
            for key, rows in data.get('products', {}).items() for r in rows]

def layer_lines(data):
    nets = {k: v['layers'] for k, v in data['nets'].items() if 'layers' in v}
    if not nets: return []
    columns = f"{'G MAC/s':>10}{'of limit':>10}{'counting':>10}{'after, of time':>16}"
    out = [f"{'binary convolution':36}{columns}"]
    out += [shape_line(r) for r in layers.by_shape(nets)]
    for name, m in nets.items():
        out.append(f'{name:24}' + ', '.join(f'{k} {v:.0%}' for k, v in m['shares'].items()))
    return out

def shape_line(r):
    def percent(k): return f'{r[k]:.0%}' if r.get(k) is not None else '-'
    limits = f"{percent('share_of_limit'):>10}{percent('counting_share_of_limit'):>10}"
    return f"{r['shape']:36}{r['gmacs']:10.0f}{limits}{r['after']/r['seconds']:16.0%}"

# --- The picture

def draw(data, file):
    "left the rivals' times in units of ours, right where our time goes"
    import matplotlib
    matplotlib.use('Agg')
    import matplotlib.pyplot as plt
    nets = {k: v for k, v in data['nets'].items() if v['threads']}
    if not nets: return
    size = 12, 1.1 + 1.25*len(nets)
    fig, (left, right) = plt.subplots(1, 2, figsize=size, width_ratios=(1.25, 1))
    draw_rivals(left, nets, data['batch'])
    draw_shares(right, nets)
    for ax, columns in ((left, 3), (right, 4)):
        ax.invert_yaxis()
        ax.legend(fontsize=7, frameon=False, loc='upper center', bbox_to_anchor=(.5, 1.13),
                  ncols=columns)
        ax.spines[['top', 'right']].set_visible(False)
    fig.tight_layout()
    fig.savefig(file, dpi=100)
    plt.close(fig)

def first_rows(net): return next(iter(net['threads'].values()))

def draw_rivals(ax, nets, batch):
    for j, (label, names) in enumerate(GROUPS.items()):
        found = [fastest(first_rows(net), names) for net in nets.values()]
        rows = {i + .12*(j - 3): r for i, r in enumerate(found) if r}
        if rows: draw_group(ax, rows, label, COLORS[j])
    threads = next(iter(next(iter(nets.values()))['threads']))
    ax.axvline(1, color='grey', ls='--', lw=.8)
    ax.set(xscale='log', xlabel=f'time, ours = 1 ({threads} thread, batch {batch})',
           yticks=range(len(nets)), yticklabels=list(nets), xlim=limits(nets))
    ax.set_xticks(TICKS, [f'{v:g}' for v in TICKS])
    ax.minorticks_off()
    ax.set_xlim(limits(nets)) # the ticks have moved them

def draw_group(ax, rows, label, color):
    "bars of one kind of rival; rows: height -> row"
    times = np.array([r['times_first'] for r in rows.values()])
    least, most = (np.array([r[k] for r in rows.values()]) for k in ('least', 'greatest'))
    bars = ax.barh(list(rows), times, .11, color=color, label=label, error_kw=dict(lw=.7),
                   hatch='//' if 'wrong' in label else None, xerr=[times - least, most - times])
    ax.bar_label(bars, [f'{t:.1f}' for t in times], padding=3, fontsize=7)

def limits(nets):
    "of the axis: less than the fastest rival took and than we did, more than the slowest bar"
    tables = list(map(first_rows, nets.values()))
    times = [t for table in tables for t in rival_times(table)]
    bars = [r['greatest'] for table in tables for r in shown(table)]
    return .7*min([1, *times]), 1.6*max([1, *bars])

def rival_times(rows):
    "in units of ours"
    measured = [r for r in rows if 'times_first' in r]
    return [r['times_first'] for r in measured if r['name'] in FLOAT + BINARY]

def shown(rows):
    "the fastest of each group that was measured"
    found = [fastest(rows, names) for names in GROUPS.values()]
    return [r for r in found if r]

def draw_shares(ax, nets):
    left = np.zeros(len(nets))
    for j, (key, label) in enumerate(PARTS.items()):
        shares = [net.get('layers', dict(shares={}))['shares'].get(key, 0) for net in nets.values()]
        width = 100*np.maximum(shares, 0)
        ax.barh(range(len(nets)), width, .5, left, color=COLORS[(j + 2) % 8], label=label)
        left += width
    ax.set(xlabel='share of our time (%), one thread', yticks=[])
