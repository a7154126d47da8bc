#include <fovea/data/loader.h>

#include <algorithm>
#include <numeric>

#include <fovea/data/shuffle.h>
#include <fovea/kernels/cpu/parallel.h>
#include <fovea/tensor/creation.h>

namespace fovea::data {
namespace {

constexpr int64_t most_at_once = int64_t{1} << 24;     // samples that are kept ready, and pixels that a width is rounded up by

// Which stream of random numbers is used for what.
enum Purpose : uint64_t { order_of_samples = 1, order_of_batches = 2, transforms = 3 };

uint64_t seed_for(uint64_t seed, int64_t epoch, Purpose purpose) { return mix_seed(mix_seed(seed, static_cast<uint64_t>(epoch)), purpose); }

std::vector<int64_t> shuffled(int64_t count, RandomStream random) {
  std::vector<int64_t> order(static_cast<size_t>(count));
  std::iota(order.begin(), order.end(), 0);
  shuffle(order, random);
  return order;
}

Tensor on_cpu(const std::vector<int64_t>& values) { return from_vector(values, {static_cast<int64_t>(values.size())}, Device::cpu()); }

int64_t width_of(const Sample& sample) { return sample.image.defined() ? sample.image.size(-1) : 0; }

void copy_padded(const Tensor& image, int64_t width, float pad_value, float* to) {
  check<DTypeError>(image.dtype() == DType::float32, "DataLoader: a picture is ", image.dtype(), ", expected float32; convert it with to(x, DType::float32)");
  const float* from = image.data<float>();
  const int64_t own_width = image.size(2);
  for (int64_t row = 0; row < image.size(0) * image.size(1); ++row, from += own_width, to += width) {
    std::copy(from, from + own_width, to);
    std::fill(to + own_width, to + width, pad_value);
  }
}

Tensor collate_images(const std::vector<Sample>& samples, const std::vector<int64_t>& indices, float pad_value, int64_t width_multiple) {
  int64_t width = 0;
  for (size_t n = 0; n < samples.size(); ++n) {
    const Tensor& image = samples[n].image;
    check<ShapeError>(image.defined() && image.rank() == 3, "collate: the image of sample ", indices[n], " must be [C,H,W]");
    const Tensor& first = samples[0].image;
    check<ShapeError>(image.size(0) == first.size(0) && image.size(1) == first.size(1), "collate: sample ", indices[n], " is ", image.shape(), ", but sample ",
                      indices[0], " is ", first.shape(), "; channels and heights must be equal (see resize_to_height)");
    width = std::max(width, image.size(2));
  }
  width = (width + width_multiple - 1) / width_multiple * width_multiple;
  const int64_t channels = samples[0].image.size(0), height = samples[0].image.size(1);
  Tensor images = empty({static_cast<int64_t>(samples.size()), channels, height, width}, Device::cpu());
  float* to = images.mutable_data<float>();
  for (const Sample& sample : samples) {
    copy_padded(sample.image, width, pad_value, to);
    to += channels * height * width;
  }
  return images;
}

void collate_targets(const std::vector<Sample>& samples, Batch& batch) {
  size_t longest = 0;
  for (const Sample& sample : samples) longest = std::max(longest, sample.target.size());
  if (longest == 0) return;
  batch.targets = zeros({batch.size(), static_cast<int64_t>(longest)}, {DType::int64, Device::cpu()});
  int64_t* row = batch.targets.mutable_data<int64_t>();
  std::vector<int64_t> lengths;
  for (const Sample& sample : samples) {
    std::copy(sample.target.begin(), sample.target.end(), row);
    row += longest;
    lengths.push_back(static_cast<int64_t>(sample.target.size()));
  }
  batch.target_lengths = on_cpu(lengths);
}

template <class T, class Of>
std::vector<T> each(std::vector<Sample>& samples, const Of& of) {
  std::vector<T> values;
  values.reserve(samples.size());
  for (Sample& sample : samples) values.push_back(of(sample));
  return values;
}

}  // namespace

Batch collate(std::vector<Sample> samples, std::vector<int64_t> indices, float pad_value, int64_t width_multiple) {
  check<ValueError>(!samples.empty() && samples.size() == indices.size(), "collate: got ", samples.size(), " samples and ", indices.size(),
                    " indices, expected as many of both and at least one");
  check<ValueError>(width_multiple >= 1 && width_multiple <= most_at_once, "collate: width_multiple must be 1 to ", most_at_once, ", got ", width_multiple);
  Batch batch;
  batch.images = collate_images(samples, indices, pad_value, width_multiple);
  batch.indices = std::move(indices);
  batch.widths = on_cpu(each<int64_t>(samples, width_of));
  if (std::any_of(samples.begin(), samples.end(), [](const Sample& s) { return s.label >= 0; }))
    batch.labels = on_cpu(each<int64_t>(samples, [](const Sample& s) { return s.label; }));
  collate_targets(samples, batch);
  batch.texts = each<std::string>(samples, [](Sample& s) { return std::move(s.text); });
  batch.boxes = each<std::vector<Box>>(samples, [](Sample& s) { return std::move(s.boxes); });
  return batch;
}

DataLoader::DataLoader(DatasetPtr dataset, LoaderOptions options) : dataset_(std::move(dataset)), options_(std::move(options)) {
  const LoaderOptions& o = options_;
  check<ValueError>(dataset_ != nullptr, "DataLoader: there is no set");
  check<ValueError>(o.batch_size >= 1 && o.workers >= 0 && o.workers <= 256 && o.prefetch_batches >= 0 && o.bucket_batches >= 0 && o.width_multiple >= 1,
                    "DataLoader: batch_size and width_multiple must be at least 1, workers 0 to 256, prefetch_batches and bucket_batches at least 0; got ",
                    o.batch_size, ", ", o.width_multiple, ", ", o.workers, ", ", o.prefetch_batches, " and ", o.bucket_batches);
  check<ValueError>(!o.shuffle || dataset_->size() <= int64_t{1} << 31, "DataLoader: cannot shuffle ", dataset_->size(),
                    " samples; an endless set is in random order already");
  // More than the set holds means all of it; one more than it holds still makes no full batch for drop_last.
  options_.batch_size = std::min(options_.batch_size, dataset_->size() + 1);
  options_.bucket_batches = std::min(options_.bucket_batches, std::max<int64_t>(batches_per_epoch(), 1));
  const int64_t ahead = std::max<int64_t>(options_.prefetch_batches, 1);
  check<ValueError>(options_.batch_size <= most_at_once && ahead <= most_at_once && pool_batches() <= most_at_once &&
                        (pool_batches() + ahead) <= most_at_once / options_.batch_size,
                    "DataLoader: batches of ", options_.batch_size, " samples, ", pool_batches(), " in a bucket and ", ahead, " ahead are more than the ", most_at_once,
                    " samples that can be kept ready; use smaller batches or fewer");
}

DataLoader::~DataLoader() { stop(); }

int64_t DataLoader::batches_per_epoch() const {
  const int64_t size = dataset_->size(), batch = options_.batch_size;
  return options_.drop_last ? size / batch : (size + batch - 1) / batch;
}

int64_t DataLoader::samples_per_epoch() const {
  return options_.drop_last ? batches_per_epoch() * options_.batch_size : dataset_->size();
}

void DataLoader::seek(LoaderPosition position) {
  check<IndexError>(position.epoch >= 0 && position.batch >= 0 && position.batch <= batches_per_epoch(), "DataLoader::seek: there is no batch ",
                    position.batch, " of epoch ", position.epoch, "; an epoch has ", batches_per_epoch(), " batches");
  stop();
  position_ = position;
}

std::optional<Batch> DataLoader::next() {
  if (position_.batch >= batches_per_epoch()) {
    position_ = {position_.epoch + 1, 0};
    return std::nullopt;
  }
  if (!started_) start();
  try {
    while (pool_.empty()) fill_pool();
  } catch (...) {
    stop();
    throw;
  }
  Batch batch = std::move(pool_.front());
  pool_.pop_front();
  ++position_.batch;
  return batch;
}

// Begins with the pool that position_ lies in, and skips the batches of it that were handed out before.
void DataLoader::start() {
  const int64_t pool = position_.batch / pool_batches(), skipped = position_.batch % pool_batches();
  first_epoch_ = position_.epoch;
  first_slot_ = pool * pool_batches() * options_.batch_size;
  taken_ = issued_ = freed_ = 0;
  stopping_ = false;
  started_ = true;
  const int64_t room = (pool_batches() + std::max<int64_t>(options_.prefetch_batches, 1)) * options_.batch_size;
  slots_.assign(static_cast<size_t>(room), Prepared());
  for (int i = 0; i < options_.workers; ++i) threads_.emplace_back([this] { work(); });
  if (skipped == 0) return;
  try {
    fill_pool();
  } catch (...) {
    stop();
    throw;
  }
  pool_.erase(pool_.begin(), pool_.begin() + skipped);
}

void DataLoader::stop() {
  {
    const std::lock_guard lock(mutex_);
    stopping_ = true;
  }
  room_.notify_all();
  for (std::thread& thread : threads_) thread.join();
  threads_.clear();
  pool_.clear();
  slots_.clear();
  started_ = false;
}

// Called with mutex_ held, or without workers.
DataLoader::Task DataLoader::task_of(int64_t ticket) {
  const int64_t slot = first_slot_ + ticket, epoch = first_epoch_ + slot / samples_per_epoch();
  int64_t index = slot % samples_per_epoch();
  if (options_.shuffle) {
    if (order_epoch_ != epoch) {
      order_ = shuffled(dataset_->size(), RandomStream(seed_for(options_.seed, epoch, order_of_samples)));
      order_epoch_ = epoch;
    }
    index = order_[static_cast<size_t>(index)];
  }
  return {ticket, epoch, index};
}

DataLoader::Prepared DataLoader::prepare(const Task& task) const {
  Prepared prepared;
  prepared.index = task.index;
  prepared.ready = true;
  try {
    prepared.sample = dataset_->get(task.index);
    RandomStream random(seed_for(options_.seed, task.epoch, transforms), static_cast<uint64_t>(task.index));
    if (options_.transform) options_.transform(prepared.sample, random);
  } catch (...) {
    prepared.error = std::current_exception();
  }
  return prepared;
}

void DataLoader::work() {
  const SerialScope serial;                    // the workers run beside each other; none of them starts threads of its own
  std::unique_lock lock(mutex_);
  while (true) {
    room_.wait(lock, [&] { return stopping_ || issued_ - freed_ < static_cast<int64_t>(slots_.size()); });
    if (stopping_) return;
    const Task task = task_of(issued_++);
    lock.unlock();
    Prepared prepared = prepare(task);
    lock.lock();
    slots_[static_cast<size_t>(task.ticket) % slots_.size()] = std::move(prepared);
    done_.notify_one();
  }
}

DataLoader::Prepared DataLoader::take(int64_t ticket) {
  if (threads_.empty()) return prepare(task_of(ticket));
  std::unique_lock lock(mutex_);
  Prepared& slot = slots_[static_cast<size_t>(ticket) % slots_.size()];
  done_.wait(lock, [&] { return slot.ready; });
  Prepared prepared = std::move(slot);
  slot = Prepared();
  ++freed_;
  room_.notify_one();
  return prepared;
}

void DataLoader::fill_pool() {
  const int64_t slot = (first_slot_ + taken_) % samples_per_epoch();
  const int64_t count = std::min(pool_batches() * options_.batch_size, samples_per_epoch() - slot);
  std::vector<Prepared> samples;
  for (int64_t i = 0; i < count; ++i) {
    samples.push_back(take(taken_++));
    if (samples.back().error) std::rethrow_exception(samples.back().error);
  }
  sort_pool(std::move(samples));
}

// By width, cut into batches, and these in a random order when samples are shuffled: the network should not see all short lines first.
void DataLoader::sort_pool(std::vector<Prepared> samples) {
  const int64_t count = static_cast<int64_t>(samples.size()), batches = (count + options_.batch_size - 1) / options_.batch_size;
  if (pool_batches() > 1)
    std::stable_sort(samples.begin(), samples.end(), [](const Prepared& a, const Prepared& b) { return width_of(a.sample) < width_of(b.sample); });
  std::vector<int64_t> order(static_cast<size_t>(batches));
  std::iota(order.begin(), order.end(), 0);
  const int64_t pool = position_.batch / pool_batches();
  if (options_.shuffle) order = shuffled(batches, RandomStream(seed_for(options_.seed, position_.epoch, order_of_batches), static_cast<uint64_t>(pool)));
  for (const int64_t b : order) {
    std::vector<Sample> members;
    std::vector<int64_t> indices;
    for (int64_t i = b * options_.batch_size; i < std::min(count, (b + 1) * options_.batch_size); ++i) {
      members.push_back(std::move(samples[static_cast<size_t>(i)].sample));
      indices.push_back(samples[static_cast<size_t>(i)].index);
    }
    pool_.push_back(collate(std::move(members), std::move(indices), options_.pad_value, options_.width_multiple));
  }
}

}  // namespace fovea::data
