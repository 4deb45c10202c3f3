"Softmax and cross-entropy of one pixel in plain numbers: what the losses are compared with."

import math


def softmax(z):
    top = max(z)
    e = [math.exp(v - top) for v in z]
    return [v / sum(e) for v in e]


def minus_log_softmax(z, y):
    top = max(z)
    return math.log(sum(math.exp(v - top) for v in z)) + top - z[y]
