import re, torch, numpy as np
src = open('/tmp/w/ship/31f_unpack.py').read()
import bnn_bn.unpack as u
from bnn_bn.unpack import *
from bnn_bn.models import create_model
from bnn_bn.fold import fold
from torch import nn
exec(re.search(r'# %%\n(def scramble.*?)\nnames = ', src, re.S).group(1))
old = u._set_sign
def spy(walk,node,ask,p,guess,allowed=None):
    old(walk,node,ask,p,guess,allowed)
    w = node.tensors['threshold'].astype(float); t=u._f32(ask(p.detach().numpy())-walk.offset).astype(float)
    bad=(t!=w); print(node.name, bad.sum(), np.c_[w,t,walk.offset,guess,p.detach().numpy(), ask(p.detach().numpy())][bad][:3])
u._set_sign=spy
try: there_and_back('xnornet18_bn')
except Exception as e: print(e)
