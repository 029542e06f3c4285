// float16 and bfloat16 under the core's names; see numeric/half.h.
#pragma once
#include "numeric/half.h"

namespace eager::core {

using numeric::bf16;
using numeric::f16;
using numeric::to_bf16;
using numeric::to_f16;
using numeric::to_float;

}  // namespace eager::core
