#include "lanes_impl.h"

namespace eager::core {
const Conversions kAvx2Conversions = make_conversions();
}
