# For scripts, to be read with `.`: cuDNN and cuBLAS often come with PyTorch only, inside Python's packages. Adds their folders to LD_LIBRARY_PATH, behind what is
# there, and sets cudnn_root to the folder that holds cuDNN's include and lib (or to nothing).
cudnn_root=""
packages=$(python3 -c 'import importlib.util as u; s = u.find_spec("nvidia"); print(*(s.submodule_search_locations if s else []), sep="\n")' 2>/dev/null)
while read -r package; do
  [ -n "$package" ] || continue
  [ -e "$package/cudnn/include/cudnn.h" ] && cudnn_root=$package/cudnn
  for folder in "$package"/cudnn/lib "$package"/cublas/lib "$package"/cu1*/lib; do
    [ -d "$folder" ] && LD_LIBRARY_PATH=${LD_LIBRARY_PATH:+$LD_LIBRARY_PATH:}$folder
  done
done <<<"$packages"
export LD_LIBRARY_PATH=${LD_LIBRARY_PATH:-}
