@0xb6f1c2a5d9e03847;

interface Callback {
  call @0 (value :Int64) -> (value :Int64);
}

interface Held {}

interface Plugin {
  add @0 (a :Int64, b :Int64) -> (value :Int64);
  callBack @1 (function :Callback, times :Int32) -> ();
  itself @2 () -> (plugin :Plugin);
  echo @3 (data :Data) -> (data :Data);
  make @4 (n :Int32) -> (held :List(Held));
}
