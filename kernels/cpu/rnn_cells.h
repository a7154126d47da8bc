// The gate arithmetic of the recurrent cells, for one sample and one step: everything of rnn.cpp that is not a matrix product. All arrays have hidden_size
// elements, `gates` arrays one part of that after the other in PyTorch's order. Formulas: rnn_cells.cpp.
#pragma once

#include <cstdint>

namespace fovea::kernels {

template <class T>
struct RnnCells {
  // gates: in, W_ih x + b_ih + W_hh h + b_hh; out, the activations i f g o. c in place; h and y (both the new h) are written, c_saved too unless null.
  void (*lstm_forward)(int64_t hidden, T* gates, T* c, T* c_saved, T* h, T* y);
  // dh: of this step's h through later steps; dy (or null) of its y. dc in place: from this step's c to the previous one's. dgates: of what gates held going in.
  void (*lstm_backward)(int64_t hidden, const T* gates, const T* c_previous, const T* c, const T* dy, const T* dh, T* dc, T* dgates);

  // gates: r and z as for the LSTM, n without its recurrent share, which is hidden_n = W_hn h + b_hn. h in place.
  void (*gru_forward)(int64_t hidden, T* gates, const T* hidden_n, T* h, T* y);
  // dh in place: out, only the share that passes by the gates. dgates_hidden: as dgates_input, but of hidden_n in place of n.
  void (*gru_backward)(int64_t hidden, const T* gates, const T* hidden_n, const T* h_previous, const T* dy, T* dh, T* dgates_input, T* dgates_hidden);

  void (*rnn_forward)(int64_t hidden, bool is_relu, const T* gates, T* h, T* y);
  void (*rnn_backward)(int64_t hidden, bool is_relu, const T* y, const T* dy, const T* dh, T* dgates);

  // sums[j] = sum over rows of data[row * pitch + j], in a fixed order; runs in parallel over the columns.
  void (*column_sums)(int64_t rows, int64_t columns, const T* data, int64_t pitch, T* sums);
};

// The version for this processor; T is float or double.
template <class T>
const RnnCells<T>& rnn_cells();

}  // namespace fovea::kernels
