#include "bench/peers/peers.hpp"

namespace flywheel::bench {

std::vector<peer> peers() {
  std::vector<peer> all;
#if defined(FLYWHEEL_PEER_ONEDNN)
  add_onednn(all);
#endif
#if defined(FLYWHEEL_PEER_OPENBLAS)
  add_openblas(all);
#endif
#if defined(FLYWHEEL_PEER_EIGEN)
  add_eigen(all);
#endif
  return all;
}

}  // namespace flywheel::bench
