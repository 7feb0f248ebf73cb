import torch, re
src = open('/tmp/w/ship/31f_unpack.py').read()
import sys
exec(compile(re.search(r'# %%\n(def scramble.*?)\nnames = ', src, re.S).group(1), 'x', 'exec'), globals()) if 0 else None
from bnn_bn.unpack import *
from bnn_bn.unpack import compare_graphs, latent_info
from bnn_bn.models import create_model
from bnn_bn.fold import fold
from torch import nn
exec(re.search(r'# %%\n(def scramble.*?)\nnames = ', src, re.S).group(1))
import time
for n in ['reactnet_mini','reactnet18', 'reactnet_a', 'birealnet18', 'xnornet18', 'vgg11']:
    for norm in ('nobn','bn','naive'):
        t=time.time()
        try: print(n, norm, there_and_back(f'{n}_{norm}')[2], round(time.time()-t,1))
        except Exception as e: print(n, norm, 'ERR', type(e).__name__, e)
