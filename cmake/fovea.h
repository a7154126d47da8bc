// Everything: #include <fovea/fovea.h>. One line for each public header; the build links it beside the folders, an installation copies it there.
#pragma once

#include <fovea/tensor/allocator.h>
#include <fovea/tensor/creation.h>
#include <fovea/tensor/random.h>
#include <fovea/tensor/tensor.h>

#include <fovea/autograd/backward.h>
#include <fovea/autograd/gradcheck.h>
#include <fovea/autograd/shape.h>
#include <fovea/autograd/tape.h>

#include <fovea/layers/container.h>
#include <fovea/layers/flatten.h>
#include <fovea/layers/init.h>
#include <fovea/layers/module.h>
#include <fovea/layers/receptive_field.h>
#include <fovea/layers/state_dict.h>
