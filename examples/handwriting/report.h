// What is left of a run for people to look at.
#pragma once

#include <string>
#include <vector>

#include "trainer.h"

void make_output_folder(const std::string& path);           // FileError if it is not there afterwards, or cannot be written to
void write_text_file(const std::string& path, const std::string& text);

std::string percent(double rate, int digits = 2);             // "2.02 %"; "-" for NaN: not measured

void write_history_csv(const std::string& path, const std::vector<HistoryRow>& history);
void draw_history(const std::string& path, const std::vector<HistoryRow>& history);       // loss, CER and learning rate over steps
// The first `count` lines of a set, each with its truth and its reading under it. What is too large to be looked at is cut.
void draw_predictions(const std::string& path, const fovea::data::DatasetPtr& lines, const std::vector<Reading>& readings, int64_t count);
void print_predictions(const fovea::data::DatasetPtr& lines, const std::vector<Reading>& readings, int64_t count);
