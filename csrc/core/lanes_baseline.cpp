#include "lanes_impl.h"

namespace eager::core {
const Conversions kBaselineConversions = make_conversions();
}
