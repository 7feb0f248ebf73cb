"`python -m bnn_bn`: the command `bnn`."
from .cli import bnn

if __name__ == '__main__': bnn()
