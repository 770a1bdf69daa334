// Measures upper bounds of a model's rates on a CUDA device:
//
//     uniproc_ceilings DEVICE LAYERS 6144x4096,4096x4096,28672x4096,4096x14336 128256x4096
//     1:1,512:1
//
// DEVICE is an index, LAYERS the number of layers, followed by the weights of a layer and of the
// output head as ROWSxCOLS, and steps as TOKENS:SAMPLED. Prints one line of JSON: the bandwidths in
// bytes per second of reads from device memory and of copies from pinned host memory, the
// operations per second of a large product, and the seconds of each step's matrix products.
// bench/cudaCeilings.js runs it. Progress goes to stderr.
#include <cuda_runtime_api.h>

#include <charconv>
#include <cstdio>
#include <exception>
#include <stdexcept>
#include <string>
#include <string_view>
#include <system_error>
#include <utility>
#include <vector>

#include "ceilings/bandwidth.h"
#include "ceilings/device.h"
#include "ceilings/products.h"
#include "ops/cuda/cuda_check.h"

namespace uniproc::ceilings {
namespace {

int numberOf(std::string_view text, int least) {
  int value = 0;
  const char* end = text.data() + text.size();
  const auto [stopped, error] = std::from_chars(text.data(), end, value);
  if (error != std::errc() || stopped != end || value < least) {
    throw std::invalid_argument('"' + std::string(text) + "\" is not a number from " +
                                std::to_string(least));
  }
  return value;
}

std::vector<std::string_view> split(std::string_view text, char separator) {
  std::vector<std::string_view> parts;
  for (size_t end; (end = text.find(separator)) != text.npos; text.remove_prefix(end + 1)) {
    parts.push_back(text.substr(0, end));
  }
  parts.push_back(text);
  return parts;
}

// Parses two numbers with a separator between them.
std::pair<int, int> pairOf(std::string_view text, char separator) {
  const std::vector<std::string_view> parts = split(text, separator);
  if (parts.size() != 2) {
    throw std::invalid_argument('"' + std::string(text) + "\" is not a pair with " + separator);
  }
  return {numberOf(parts[0], 1), numberOf(parts[1], 1)};
}

Shape shapeOf(std::string_view text) {
  const auto [rows, cols] = pairOf(text, 'x');
  return {rows, cols};
}

Step stepOf(std::string_view text) {
  const auto [numTokens, numSampled] = pairOf(text, ':');
  return {numTokens, numSampled};
}

template <class T, class Parse>
std::vector<T> listOf(std::string_view text, Parse parse) {
  std::vector<T> values;
  for (const std::string_view part : split(text, ',')) values.push_back(parse(part));
  return values;
}

std::string textOf(double value) {
  char text[32];
  std::snprintf(text, sizeof text, "%.9g", value);
  return text;
}

// Operations per second of the product of two matrices of 8192 x 8192, with the fastest algorithm.
double productRate(cudaStream_t stream) {
  constexpr int32_t kSize = 8192;
  constexpr Step kStep = {kSize, kSize};
  Products product(stream, 0, {}, {kSize, kSize}, {kStep});
  return 2.0 * kSize * kSize * kSize / product.seconds(kStep);
}

void measure(int device, int numLayers, const std::vector<Shape>& layer, Shape head,
             const std::vector<Step>& steps) {
  cuda::check(cudaSetDevice(device), "cudaSetDevice");
  cudaDeviceProp properties;
  cuda::check(cudaGetDeviceProperties(&properties, device), "cudaGetDeviceProperties");
  const Stream stream;
  std::fprintf(stderr, "  bandwidth\n");
  const double read = readBandwidth(stream);
  const double copy = copyBandwidth(stream);
  std::fprintf(stderr, "  a large product\n");
  const double rate = productRate(stream);
  std::string result =
      "{\"device\":\"" + std::string(properties.name) + "\",\"readBandwidth\":" + textOf(read) +
      ",\"copyBandwidth\":" + textOf(copy) + ",\"productRate\":" + textOf(rate) + ",\"steps\":[";
  Products products(stream, numLayers, layer, head, steps);
  const char* separator = "";
  for (const Step step : steps) {
    std::fprintf(stderr, "  products of %d tokens, %d sampled\n", step.numTokens, step.numSampled);
    result += separator;
    result += "{\"numTokens\":" + std::to_string(step.numTokens) +
              ",\"numSampled\":" + std::to_string(step.numSampled) +
              ",\"seconds\":" + textOf(products.seconds(step)) + "}";
    separator = ",";
  }
  std::printf("%s]}\n", result.c_str());
}

}  // namespace
}  // namespace uniproc::ceilings

int main(int argc, char** argv) {
  using namespace uniproc::ceilings;
  if (argc != 6) {
    std::fprintf(
        stderr,
        "usage: uniproc_ceilings DEVICE LAYERS ROWSxCOLS,... ROWSxCOLS TOKENS:SAMPLED,...\n");
    return 2;
  }
  try {
    measure(numberOf(argv[1], 0), numberOf(argv[2], 1), listOf<Shape>(argv[3], shapeOf),
            shapeOf(argv[4]), listOf<Step>(argv[5], stepOf));
  } catch (const std::exception& error) {
    std::fprintf(stderr, "uniproc_ceilings: %s\n", error.what());
    return 1;
  }
  return 0;
}
