#include <fovea/data/line_text.h>

#include <algorithm>
#include <cctype>
#include <string_view>
#include <vector>

#include <fovea/data/glyphs.h>
#include <fovea/kernels/error.h>

namespace fovea::data {
namespace {

// The most frequent words first, then words that bring the rarer letters.
constexpr std::string_view word_list =
    "the of and to in a is that it was for on are as with his they be at one have this from or had by not but some what there we can out other were all "
    "your when up use word how said an each she which do their time if will way about many then them would write like so these her long make thing see "
    "him two has look more day could go come did my sound no most number who over know water than call first people may down side been now find any new "
    "work part take get place made live where after back little only round man year came show every good me give our under name very through just form "
    "much great think say help low line before turn cause same mean differ move right boy old too does tell sentence set three want air well also play "
    "small end put home read hand port large spell add even land here must big high such follow act why ask men change went light kind off need house "
    "picture try us again animal point mother world near build self earth father head stand own page should country found answer school grow study still "
    "learn plant cover food sun four thought let keep eye never last door between city tree cross since hard start might story saw far sea draw left late "
    "run while press close night real life few stop open seem together next white children begin got walk example ease paper often always music those both "
    "mark book letter until mile river car feet care second group carry took rain eat room friend began idea fish mountain north once base hear horse cut "
    "sure watch color face wood main enough plain girl usual young ready above ever red list though feel talk bird soon body dog family direct pose leave "
    "song measure state product black short class wind question happen complete ship area half rock order fire south problem piece told knew pass farm top "
    "whole king size heard best hour better true during hundred remember step early hold west ground interest reach fast five sing listen six table travel "
    "less morning ten simple several vowel toward war lay against pattern slow center love person money serve appear road map science rule govern pull cold "
    "notice voice fall power town fine certain fly unit lead cry dark machine note wait plan figure star box noun field rest correct able pound done beauty "
    "drive stood contain front teach week final gave green quick develop sleep warm free minute strong special mind behind clear tail produce fact street "
    "inch lot nothing course stay wheel full force blue object decide surface deep moon island foot yet busy test record boat common gold possible plane "
    "age dry wonder laugh thousand ago ran check game shape yes hot miss brought heat snow bed bring sit perhaps fill east weight language among quiz jazz "
    "zero zebra lazy dozen prize puzzle size amaze freeze jump just judge enjoy major job juice join joke queen quiet quite quote equal liquid square "
    "squeeze box fox six tax text next mix extra exact axis relax expect ink kick keep knock kiosk walk wave view vivid value seven wave oxygen rhythm "
    "maximum object subject project jacket banjo hazy fizz buzz vex wax";

std::vector<std::string_view> split_words() {
  std::vector<std::string_view> words;
  std::string_view rest = word_list;
  while (!rest.empty()) {
    const size_t length = std::min(rest.find(' '), rest.size());
    words.push_back(rest.substr(0, length));
    rest.remove_prefix(std::min(length + 1, rest.size()));
  }
  return words;
}

std::string digits(RandomStream& random, int64_t count) {
  std::string text;
  for (int64_t i = 0; i < count; ++i) text += static_cast<char>('0' + random.integer(10));
  return text;
}

std::string number(RandomStream& random) {
  switch (random.integer(8)) {
    case 0: return digits(random, 2) + "/" + digits(random, 2) + "/" + digits(random, 4);
    case 1: return digits(random, 2) + ":" + digits(random, 2);
    case 2: return digits(random, 1 + random.integer(3)) + "." + digits(random, 1 + random.integer(2));
    case 3: return digits(random, 4) + "-" + digits(random, 2);
    default: return digits(random, 1 + random.integer(5));
  }
}

std::string letters_in_no_order(RandomStream& random) {
  const std::string_view characters = glyph_characters();
  std::string text;
  const int64_t length = 1 + random.integer(5);
  for (int64_t i = 0; i < length; ++i) text += characters[static_cast<size_t>(random.integer(static_cast<int64_t>(characters.size())))];
  return text;
}

std::string capitalised(std::string text, bool all) {
  for (char& c : text) {
    c = static_cast<char>(std::toupper(static_cast<unsigned char>(c)));
    if (!all) break;
  }
  return text;
}

std::string word(RandomStream& random) {
  static const std::vector<std::string_view> words = split_words();
  const auto one = [&] { return std::string(words[static_cast<size_t>(random.integer(static_cast<int64_t>(words.size())))]); };
  std::string text = one();
  const float form = random.uniform();
  if (form < 0.20f) text = capitalised(text, false);
  else if (form < 0.27f) text = capitalised(text, true);
  if (random.chance(0.03f)) (text += '-') += one();
  if (random.chance(0.04f)) text += "'s";
  return text;
}

std::string punctuated(RandomStream& random, std::string text) {
  const float form = random.uniform();
  if (form < 0.10f) return text + ",";
  if (form < 0.18f) return text + ".";
  if (form < 0.20f) return text + ";";
  if (form < 0.22f) return text + ":";
  if (form < 0.25f) return text + "!";
  if (form < 0.28f) return text + "?";
  if (form < 0.31f) return str('"', text, '"');
  if (form < 0.34f) return str('(', text, ')');
  if (form < 0.35f) return text + " &";
  return text;
}

std::string token(RandomStream& random) {
  const float kind = random.uniform();
  if (kind < 0.10f) return punctuated(random, number(random));
  if (kind < 0.16f) return letters_in_no_order(random);
  return punctuated(random, word(random));
}

}  // namespace

std::string random_line_text(RandomStream& random, int64_t min_characters, int64_t max_characters) {
  const auto wanted = static_cast<size_t>(min_characters + random.integer(max_characters - min_characters + 1));
  std::string text = token(random);
  while (text.size() < wanted) (text += ' ') += token(random);
  text.resize(wanted);
  if (text.back() == ' ') text.back() = static_cast<char>('a' + random.integer(26));
  return text;
}

}  // namespace fovea::data
