#include <fovea/kernels/cuda/nvtx.h>

#include <nvtx3/nvToolsExt.h>

#include <cstdlib>
#include <cstring>

namespace fovea::cuda {
namespace {

// Ours stand in a row of their own.
nvtxDomainHandle_t domain() {
  static const nvtxDomainHandle_t made = nvtxDomainCreateA("fovea");
  return made;
}

}  // namespace

namespace detail {

constinit std::atomic<int> range_switch{-1};

bool read_range_switch() {
  const char* wish = std::getenv("FOVEA_NVTX");
  int unread = -1;
  range_switch.compare_exchange_strong(unread, wish && *wish && std::strcmp(wish, "0") != 0);      // set_ranges() may have been faster
  return range_switch > 0;
}

}  // namespace detail

void set_ranges(bool is_on) { detail::range_switch = is_on; }

void Range::open(const char* name, const char* suffix) {
  const std::string text = std::string(name) + suffix;
  nvtxEventAttributes_t event{};
  event.version = NVTX_VERSION;
  event.size = NVTX_EVENT_ATTRIB_STRUCT_SIZE;
  event.messageType = NVTX_MESSAGE_TYPE_ASCII;
  event.message.ascii = text.c_str();                         // NVTX takes a copy
  nvtxDomainRangePushEx(domain(), &event);
}

void Range::close() noexcept { nvtxDomainRangePop(domain()); }

}  // namespace fovea::cuda
