// DataLoader: samples of a set, in batches, prepared ahead of time by worker threads.
#pragma once

#include <condition_variable>
#include <deque>
#include <exception>
#include <mutex>
#include <optional>
#include <thread>
#include <vector>

#include <fovea/data/dataset.h>

namespace fovea::data {

// What a sample became part of. Row n of each tensor is sample n. Tensors that no sample has data for are undefined.
struct Batch {
  Tensor images;                               // [N,C,H,W] float32; narrower ones are filled up at the right with pad_value
  Tensor widths;                               // [N] int64, before padding
  Tensor labels;                               // [N] int64
  Tensor targets, target_lengths;              // [N, longest] int64, filled up with 0; [N] int64
  std::vector<std::string> texts;
  std::vector<std::vector<Box>> boxes;
  std::vector<int64_t> indices;                // in the set
  int64_t size() const { return static_cast<int64_t>(indices.size()); }
};

// The picture heights and channels must be equal (ShapeError names the sample otherwise); the width is the greatest one, rounded up to width_multiple.
Batch collate(std::vector<Sample> samples, std::vector<int64_t> indices, float pad_value = 0, int64_t width_multiple = 1);

struct LoaderOptions {
  int64_t batch_size = 32;
  bool shuffle = false;                        // a new order each epoch; at most 2^31 samples
  bool drop_last = false;                      // leave out samples that do not fill a batch
  int workers = 1;                             // threads; 0: samples are prepared in next()
  int64_t prefetch_batches = 4;                // prepared ahead
  int64_t bucket_batches = 0;                  // so many batches of samples are prepared together and sorted by width: less padding; 0 or 1: no sorting
  float pad_value = 0;
  int64_t width_multiple = 1;
  uint64_t seed = 0;
  Transform transform = nullptr;               // its random stream depends on seed, epoch and sample alone
};

// The next batch to come.
struct LoaderPosition {
  int64_t epoch = 0, batch = 0;
  bool operator==(const LoaderPosition&) const = default;
};

// Note [The batches do not depend on the workers]
// The order of samples is worked out from (seed, epoch) alone, each sample draws from a stream of its own (seed, epoch, sample), and batches are put
// together by the thread that calls next(), in order. So neither the number of workers nor their speed changes anything, and a loader that seeks to a
// saved position goes on with the very batches that would have come.
class DataLoader {
 public:
  DataLoader(DatasetPtr dataset, LoaderOptions options);
  ~DataLoader();
  DataLoader(const DataLoader&) = delete;
  DataLoader& operator=(const DataLoader&) = delete;

  // The next batch; nothing at the end of an epoch, once, after which the next epoch follows. An exception of a worker is thrown here; the position
  // then stays, and the next call tries again.
  std::optional<Batch> next();

  int64_t batches_per_epoch() const;
  LoaderPosition position() const { return position_; }
  void seek(LoaderPosition position);          // IndexError for a batch beyond the epoch

 private:
  struct Prepared {
    Sample sample;
    int64_t index = 0;
    std::exception_ptr error;
    bool ready = false;
  };
  struct Task {
    int64_t ticket = 0, epoch = 0, index = 0;
  };

  int64_t samples_per_epoch() const;
  int64_t pool_batches() const { return std::max<int64_t>(options_.bucket_batches, 1); }
  Task task_of(int64_t ticket);
  Prepared prepare(const Task& task) const;
  Prepared take(int64_t ticket);
  void work();
  void start();
  void stop();
  void fill_pool();
  void sort_pool(std::vector<Prepared> samples);

  DatasetPtr dataset_;
  LoaderOptions options_;
  LoaderPosition position_;

  std::deque<Batch> pool_;                     // batches that follow, up to the end of the pool
  bool started_ = false;
  int64_t first_epoch_ = 0, first_slot_ = 0;   // where ticket 0 stands
  int64_t taken_ = 0;                          // tickets that next() has used

  std::mutex mutex_;                           // guards all that follows
  std::condition_variable room_, done_;
  std::vector<std::thread> threads_;
  std::vector<Prepared> slots_;                // ticket t is kept in slot t % slots_.size()
  int64_t issued_ = 0, freed_ = 0;
  bool stopping_ = false;
  int64_t order_epoch_ = -1;
  std::vector<int64_t> order_;
};

}  // namespace fovea::data
