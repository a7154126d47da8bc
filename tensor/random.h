// Generator, default_generator() and manual_seed(): where random numbers come from.
#pragma once

#include <fovea/kernels/generator.h>
