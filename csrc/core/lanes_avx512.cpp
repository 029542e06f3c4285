#include "lanes_impl.h"

namespace eager::core {
const Conversions kAvx512Conversions = make_conversions();
}
