// Everything: one line for each public header. The build links this file as <fovea/fovea.h> beside the folders, an installation copies it there.
#pragma once

#include <fovea/kernels/cpu/parallel.h>
#include <fovea/kernels/cuda/allocator.h>
#include <fovea/kernels/cuda/graph.h>
#include <fovea/kernels/cuda/nvtx.h>
#include <fovea/kernels/cuda/runtime.h>

#include <fovea/tensor/allocator.h>
#include <fovea/tensor/compare.h>
#include <fovea/tensor/creation.h>
#include <fovea/tensor/file.h>
#include <fovea/tensor/image_file.h>
#include <fovea/tensor/image_tensor.h>
#include <fovea/tensor/named_tensors.h>
#include <fovea/tensor/npy.h>
#include <fovea/tensor/npz.h>
#include <fovea/tensor/print.h>
#include <fovea/tensor/random.h>
#include <fovea/tensor/safetensors.h>
#include <fovea/tensor/tensor.h>
#include <fovea/tensor/utf8.h>

#include <fovea/autograd/activations.h>
#include <fovea/autograd/arguments.h>
#include <fovea/autograd/autocast.h>
#include <fovea/autograd/backward.h>
#include <fovea/autograd/conv.h>
#include <fovea/autograd/ctc.h>
#include <fovea/autograd/elementwise.h>
#include <fovea/autograd/gradcheck.h>
#include <fovea/autograd/image.h>
#include <fovea/autograd/index.h>
#include <fovea/autograd/indexing.h>
#include <fovea/autograd/inplace.h>
#include <fovea/autograd/matmul.h>
#include <fovea/autograd/norm.h>
#include <fovea/autograd/pair.h>
#include <fovea/autograd/pool.h>
#include <fovea/autograd/random.h>
#include <fovea/autograd/reduce.h>
#include <fovea/autograd/rnn.h>
#include <fovea/autograd/shape.h>
#include <fovea/autograd/softmax.h>
#include <fovea/autograd/tape.h>

#include <fovea/layers/activation.h>
#include <fovea/layers/attention.h>
#include <fovea/layers/container.h>
#include <fovea/layers/conv.h>
#include <fovea/layers/dropout.h>
#include <fovea/layers/embedding.h>
#include <fovea/layers/flatten.h>
#include <fovea/layers/init.h>
#include <fovea/layers/linear.h>
#include <fovea/layers/loss.h>
#include <fovea/layers/module.h>
#include <fovea/layers/norm.h>
#include <fovea/layers/pool.h>
#include <fovea/layers/receptive_field.h>
#include <fovea/layers/rnn.h>
#include <fovea/layers/state_dict.h>
#include <fovea/layers/upsample.h>

#include <fovea/optim/checkpoint.h>
#include <fovea/optim/clip.h>
#include <fovea/optim/grad_scaler.h>
#include <fovea/optim/gradients.h>
#include <fovea/optim/optimizer.h>
#include <fovea/optim/optimizers.h>
#include <fovea/optim/schedule.h>

#include <fovea/data/augment.h>
#include <fovea/data/box_csv.h>
#include <fovea/data/cifar10.h>
#include <fovea/data/dataset.h>
#include <fovea/data/idx.h>
#include <fovea/data/image.h>
#include <fovea/data/image_folder.h>
#include <fovea/data/line_folder.h>
#include <fovea/data/loader.h>
#include <fovea/data/random_stream.h>
#include <fovea/data/synthetic_handwriting.h>
#include <fovea/data/text.h>

#include <fovea/viz/canvas.h>
#include <fovea/viz/plot.h>
