// Streams as queues whose operations run late: when somebody waits for them.
#pragma once

#include <chrono>
#include <deque>
#include <functional>
#include <map>
#include <memory>
#include <mutex>
#include <string>
#include <vector>

#include "model.h"

namespace host_cuda {

using Clock = std::chrono::steady_clock;

// One recording of an event.
struct Recording {
  bool is_done = false;
  Clock::time_point time;
};

struct Operation {
  std::function<std::string()> name;               // for messages
  std::function<void()> run;                       // nothing for events
  std::shared_ptr<Recording> waits_for, records;
  bool all_devices = false;                        // may touch the memory of every device
  bool is_host_code = false;                       // may touch none
  uint64_t number = 0;                             // in the order of the calls, over all streams
};

struct Graph {
  std::vector<Operation> operations;               // in the order in which they were captured, which is one of the legal ones
};
struct Executable {
  std::shared_ptr<const Graph> graph;
};

struct Capture {
  Graph graph;
  std::vector<Stream*> streams;                    // the first began it; the others were drawn in by waiting for an event of it
  bool is_broken = false;
};

// How many of each stream's captured operations come before something.
using Captured = std::map<const void*, int64_t>;

struct Stream {
  int device = 0;
  bool is_blocking = true;                         // orders itself with the default stream
  bool is_default = false;
  std::deque<Operation> queue;
  std::shared_ptr<Capture> capture;
  Captured captured = {};                          // before the next operation, its own among them
};

struct Event {
  int device = 0;
  bool has_timing = true;
  std::shared_ptr<Recording> latest;               // nullptr: never recorded
  std::shared_ptr<Capture> capture;                // that the latest recording belongs to
  Captured captured = {};                          // before that
};

// Held through every call of the API: calls from several threads take turns.
std::recursive_mutex& api_lock();

Stream* resolve(cudaStream_t stream);              // the default stream for 0; nullptr when there is no such stream
bool is_event(cudaEvent_t event);
bool break_captures(bool only_blocking);
cudaError_t enqueue(Stream& stream, Operation operation);
// Runs operations, of any stream, until `finished`. The error of what has failed, once.
cudaError_t run_until(const std::function<bool()>& finished);
cudaError_t run_one();                             // or none when there is none
cudaError_t run_all();

}  // namespace host_cuda
