// The part of NVTX that kernels/cuda/ uses, with NVTX's names. Ranges are written down where a test asks for it (host_cuda.h).
#pragma once

#include <cstdint>

#define NVTX_VERSION 3
#define NVTX_EVENT_ATTRIB_STRUCT_SIZE (static_cast<uint16_t>(sizeof(nvtxEventAttributes_t)))

using nvtxDomainHandle_t = struct nvtxDomainRegistration_st*;

enum nvtxMessageType_t : int32_t { NVTX_MESSAGE_UNKNOWN = 0, NVTX_MESSAGE_TYPE_ASCII = 1 };
union nvtxMessageValue_t {
  const char* ascii;
};
struct nvtxEventAttributes_t {
  uint16_t version, size;
  uint32_t category;
  int32_t colorType;
  uint32_t color;
  int32_t payloadType, reserved0;
  uint64_t payload;
  int32_t messageType;
  nvtxMessageValue_t message;
};

nvtxDomainHandle_t nvtxDomainCreateA(const char* name);
int nvtxDomainRangePushEx(nvtxDomainHandle_t domain, const nvtxEventAttributes_t* event);      // how many ranges of the thread were open
int nvtxDomainRangePop(nvtxDomainHandle_t domain);                                             // how many are still open; negative where none was
