# Turns our comments into Doxygen's: a block of // lines before a declaration becomes ///, a comment behind code becomes ///<. The block at the head of a file
# becomes the file's description.
NR == 1 && /^\/\// { print "/// @file"; in_head = 1 }
in_head && !/^\/\// { in_head = 0 }
{
  if (match($0, /^[ \t]*\/\/ ?---/)) { print; next }                 # a heading inside a header
  if (match($0, /^[ \t]*\/\/[^\/]/)) { sub(/\/\//, "///"); print; next }
  if (match($0, /[;,{}] +\/\/ /) && $0 !~ /^[ \t]*\/\//) { sub(/ \/\/ /, " ///< "); print; next }
  print
}
